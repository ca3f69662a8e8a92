-- An image. KEYS: as of image_keep. ARGV: now ('' for the server's clock), image. Returns it, nil when there is none or it
-- has expired.
local ends = redis.call('HGET', KEYS[2], 'until:' .. ARGV[2])
return ends and tonumber(ends) > time_of(ARGV[1]) and redis.call('HGET', KEYS[1], ARGV[2]) or nil
