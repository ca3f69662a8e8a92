-- Let go of images whose jobs have expired. KEYS: as of image_keep. ARGV: now ('' for the server's clock), how many at most.
-- Returns how many.
local due = string.format('%.0f', (time_of(ARGV[1])))
local expired = redis.call('ZRANGE', KEYS[3], '-inf', due, 'BYSCORE', 'LIMIT', 0, ARGV[2])
for _, member in ipairs(expired) do
  let_go(string.sub(member, 1, 64), string.sub(member, 65))
end
return #expired
