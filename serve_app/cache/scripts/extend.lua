-- Keep the value of KEYS[1] at least ARGV[1] milliseconds from now, never less than it would be kept anyway.
-- Returns 1, or 0 when there is none.
local left = redis.call('PTTL', KEYS[1])
if left == -2 then
  return 0
end
if left >= 0 and left < tonumber(ARGV[1]) then
  redis.call('PEXPIRE', KEYS[1], ARGV[1])
end
return 1
