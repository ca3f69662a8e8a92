-- Take or keep a lease that nobody else has. KEYS: lease. ARGV: holder, milliseconds it lasts (0: give it back).
-- Returns 1 when the holder has it now (or gave it back), else 0.
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then
  return 0
end
if ARGV[2] == '0' then
  redis.call('DEL', KEYS[1])
else
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
end
return 1
