-- Orphans, to one claimant each: what it is given has its heartbeat from now on.
-- KEYS: unfinished. ARGV: now ('' for the server's clock), how long a job may be silent, how many to give at most.
--   Times are milliseconds. Returns ids, the longest silent first.
local now = time_of(ARGV[1])
local due = string.format('%.0f', now - tonumber(ARGV[2]))
local orphans = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', due, 'LIMIT', 0, ARGV[3])
for _, id in ipairs(orphans) do
  redis.call('ZADD', KEYS[1], string.format('%.0f', now), id)
end
return orphans
