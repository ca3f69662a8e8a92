-- The newest state of one job, written anew if Redis lost it; never over a deletion or an end.
-- ARGV: now ('' for the server's clock), id, the new record, created at, expires at, class ('open', 'ended').
-- Returns {'stored'} | {'gone'} when it was deleted or has expired | {'ended', record} when it has ended before.
local now = time_of(ARGV[1])
local id = ARGV[2]
local class = class_of(id)
if now >= tonumber(ARGV[5]) or (not class and is_deleted(id, ARGV[4])) then
  redis.call('ZREM', BEATS, id)
  return {'gone'}
end
if class == ENDED or class == HITS then
  redis.call('ZREM', BEATS, id)
  return {'ended', redis.call('HGET', RECORDS, id)}
end
local open = ARGV[6] == 'open'
put(id, ARGV[3], ARGV[4], ARGV[5], open and OPEN or ENDED)
if open then
  beat(id, now)
else
  redis.call('ZREM', BEATS, id)
end
return {'stored'}
