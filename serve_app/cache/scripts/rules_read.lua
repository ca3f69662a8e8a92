-- The epoch of the invalidations, and all of them unless the reader knows this epoch and their number.
-- KEYS: rules (hash by label), epoch, sweeps (hash by label). ARGV: now ('' for the server's clock), the version known.
-- Returns {version, now, fields of the rules, fields of the sweeps} | {version, now} | {'', now} when there is no epoch: then
--   nobody ever wrote one, or Redis was emptied.
local now, micros = time_of(ARGV[1])
local time = string.format('%.0f', now * 1000 + micros)
local epoch = redis.call('GET', KEYS[2])
if not epoch then
  return {'', time}
end
local version = epoch .. '/' .. redis.call('HLEN', KEYS[1])  -- what is evicted changes the number
if version == ARGV[2] then
  return {version, time}
end
return {version, time, redis.call('HGETALL', KEYS[1]), redis.call('HGETALL', KEYS[3])}
