-- Orphans, to one claimant each: what it is given has its heartbeat from now on.
-- KEYS: unfinished, the steady time. ARGV: now ('' for the server's clock), how long a job may be silent, how many to give
--   at most. Times are milliseconds. Returns ids, the longest silent first.
local now = steady_of(ARGV[1], KEYS[2], tonumber(ARGV[2]) + 500)
-- Who has just been written counts by the server's clock, which may be ahead of the steady time: from now on, then.
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], string.format('(%.0f', now), '+inf', 'LIMIT', 0, 1000)) do
  redis.call('ZADD', KEYS[1], string.format('%.0f', now), id)
end
local due = string.format('%.0f', now - tonumber(ARGV[2]))
local orphans = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', due, 'LIMIT', 0, ARGV[3])
for _, id in ipairs(orphans) do
  redis.call('ZADD', KEYS[1], string.format('%.0f', now), id)
end
return orphans
