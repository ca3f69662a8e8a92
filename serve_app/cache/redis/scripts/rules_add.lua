-- Add invalidations; of one label the one with the later `before` stays, and one of everything takes the place of all that
-- it covers. Each is a field of the hash: 'kind before at'.
-- KEYS: rules (hash by label), epoch, the labels of what was asked for with the tag that is invalidated (a set; nobody's
--   when it is no tag), the clock, sweeps (hash by label). ARGV: now ('' for the server's clock), channel, the time by all
--   that the caller has heard of (0: nothing), how many rules there may be ('' for any number), the label of everything, and
--   for each rule: label, kind, before, at; without `before` it is now less `at`, its age. Times of rules are microseconds.
-- Returns {how many there are} when there would be too many, and adds nothing then; else {epoch, now, {label, kind, before,
--   at, ...}, left} with what was added, up to 500 of the set's members as rules of their own among it, and how many of
--   those are left: then the caller comes again.
local now, behind = time_after(ARGV[1], KEYS[4], ARGV[3])
if behind then
  now = now + 1000000  -- later than whatever began anywhere before this
  redis.call('SET', KEYS[4], string.format('%.0f', now))
end
local added = {}
local function before_of(label)
  local known = redis.call('HGET', KEYS[1], label)
  return known and tonumber(string.match(known, '^%a+ (%-?%d+)')) or -math.huge
end
local function add(label, kind, before, at)
  if math.max(before_of(label), before_of(ARGV[5])) >= before then
    return
  end
  local times = string.format('%.0f %.0f', before, at)
  redis.call('HSET', KEYS[1], label, kind .. ' ' .. times)
  for _, field in ipairs({label, kind, string.format('%.0f', before), string.format('%.0f', at)}) do
    added[#added + 1] = field
  end
end
if ARGV[4] ~= '' then
  local count, new = redis.call('HLEN', KEYS[1]), 0
  for first = 6, #ARGV, 4 do
    if ARGV[first] ~= ARGV[5] then
      new = new + 1 - redis.call('HEXISTS', KEYS[1], ARGV[first])
    end
  end
  if new > 0 and count + new > tonumber(ARGV[4]) then
    return {count}
  end
end
for first = 6, #ARGV, 4 do
  local before, at = tonumber(ARGV[first + 2]), tonumber(ARGV[first + 3])
  if before then
    add(ARGV[first], ARGV[first + 1], before, at)
  else
    add(ARGV[first], ARGV[first + 1], now - at, now)
  end
end
for _, label in ipairs(redis.call('SPOP', KEYS[3], 500)) do  -- no more at a time: no other client is served meanwhile
  add(label, 'key', now, now)
end
for first = 1, #added, 4 do
  if added[first] == ARGV[5] then  -- everything: what it covers goes
    local all = redis.call('HGETALL', KEYS[1])
    for place = 1, #all, 2 do
      if all[place] ~= ARGV[5] and before_of(all[place]) <= tonumber(added[first + 2]) then
        redis.call('HDEL', KEYS[1], all[place])
        redis.call('HDEL', KEYS[5], all[place])
      end
    end
  end
end
local epoch = tonumber(redis.call('GET', KEYS[2]) or '0')
if #added > 0 or epoch == 0 then
  epoch = math.max(epoch + 1, now)  -- by the clock, so that a Redis that was emptied never says an old one again
  redis.call('SET', KEYS[2], string.format('%.0f', epoch))
  redis.call('PUBLISH', ARGV[2], string.format('%.0f', epoch))
end
return {string.format('%.0f', epoch), string.format('%.0f', now), added, redis.call('SCARD', KEYS[3])}
