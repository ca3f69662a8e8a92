-- Return the value of KEYS[1] (nil when there is none) and keep it ARGV[1] milliseconds from now.
local value = redis.call('GET', KEYS[1])
if value then
  keep(KEYS[1], ARGV[1])
end
return value
