-- One record. ARGV: now ('' for the server's clock), id, created at ('' for not known).
-- Returns {record} | {} when there is none | {'', 'deleted'}.
local now = time_of(ARGV[1])
local class, expires = class_of(ARGV[2])
if class then
  return now < expires and {redis.call('HGET', RECORDS, ARGV[2])} or {}
end
return is_deleted(ARGV[2], ARGV[3]) and {'', 'deleted'} or {}
