-- Forget invalidations by which nothing is covered any more, unless a newer one has taken a label.
-- KEYS: rules (hash by label), epoch, sweeps (hash by label), the clock. ARGV: now ('' for the server's clock), channel, then for each
--   rule its label and its field. Returns how many were forgotten.
local now = time_after(ARGV[1], KEYS[4], '0')
local count = 0
for first = 3, #ARGV, 2 do
  if redis.call('HGET', KEYS[1], ARGV[first]) == ARGV[first + 1] then
    redis.call('HDEL', KEYS[1], ARGV[first])
    redis.call('HDEL', KEYS[3], ARGV[first])
    count = count + 1
  end
end
if count > 0 then
  local epoch = math.max(tonumber(redis.call('GET', KEYS[2]) or '0') + 1, now)
  redis.call('SET', KEYS[2], string.format('%.0f', epoch))
  redis.call('PUBLISH', ARGV[2], string.format('%.0f', epoch))
end
return count
