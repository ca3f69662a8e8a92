-- Warm-ups that have expired, and the oldest finished ones beyond a number. KEYS: unfinished, all by when they expire.
-- ARGV: now ('' for the server's clock), how many to look at, most of all. Returns ids.
local due = redis.call('ZRANGE', KEYS[2], '-inf', string.format('%.0f', (time_of(ARGV[1]))), 'BYSCORE', 'LIMIT', 0, ARGV[2])
local beyond = redis.call('ZCARD', KEYS[2]) - #due - tonumber(ARGV[3])
for _, id in ipairs(redis.call('ZRANGE', KEYS[2], #due, #due + tonumber(ARGV[2]) - 1)) do
  if beyond > 0 and not redis.call('ZSCORE', KEYS[1], id) then
    due[#due + 1] = id
    beyond = beyond - 1
  end
end
return due
