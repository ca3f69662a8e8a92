-- Take or keep a lease that no other process has. KEYS: lease ('holder number', the number another one each time).
-- ARGV: holder, milliseconds after which it is cleared away (0: give it back), the value that the caller has seen for the
--   length of the lease ('' for none), the new value. Returns '' when the holder has it now (or gave it back), else what it is.
local value = redis.call('GET', KEYS[1])
if value and value ~= ARGV[3] and string.match(value, '^%S*') ~= ARGV[1] then
  return value
end
if ARGV[2] == '0' then
  redis.call('DEL', KEYS[1])
else
  redis.call('SET', KEYS[1], ARGV[4], 'PX', ARGV[2])
end
return ''
