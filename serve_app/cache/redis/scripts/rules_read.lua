-- The epoch of the invalidations, and all of them unless the reader knows this epoch and their number.
-- KEYS: rules (hash by label), epoch, sweeps (hash by label), the clock. ARGV: now ('' for the server's clock), the version
--   known, the time by all that the reader has heard of (0: nothing).
-- Returns {version, now, fields of the rules, fields of the sweeps} | {version, now} | {'', now} when there is no epoch: then
--   none was ever written, or Redis was emptied.
local time = string.format('%.0f', (time_after(ARGV[1], KEYS[4], ARGV[3])))
local epoch = redis.call('GET', KEYS[2])
if not epoch then
  return {'', time}
end
local version = epoch .. '/' .. redis.call('HLEN', KEYS[1])  -- what is evicted changes the number
if version == ARGV[2] then
  return {version, time}
end
return {version, time, redis.call('HGETALL', KEYS[1]), redis.call('HGETALL', KEYS[3])}
