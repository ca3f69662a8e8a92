-- Put a tombstone where a record was. ARGV: now ('' for the server's clock), id, created at ('' for not known), most
--   records, most bytes of them. Returns 1 when there was a record.
local now = time_of(ARGV[1])
local id = ARGV[2]
local created = redis.call('ZSCORE', LISTED, id) or ARGV[3]
if created == '' then
  created = string.format('%.3f', now / 1000)
end
local _, expires = class_of(id)
local there = drop(id)
if not redis.call('ZSCORE', DELETED, id) then
  bury(id, created, budget_of(ARGV[4], ARGV[5]))
end
return there and now < expires and 1 or 0
