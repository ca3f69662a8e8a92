-- Forget what was asked for with tags that were not used for long. KEYS: all such sets by when they were last asked for, then
--   sets. ARGV: now ('' for the server's clock), how long they are kept (milliseconds). Returns how many were forgotten.
local forgotten, count = time_of(ARGV[1]) - tonumber(ARGV[2]), 0
for number = 2, #KEYS do
  local last = redis.call('ZSCORE', KEYS[1], KEYS[number])
  if last and tonumber(last) < forgotten then
    redis.call('ZREM', KEYS[1], KEYS[number])
    redis.call('DEL', KEYS[number])
    count = count + 1
  end
end
return count
