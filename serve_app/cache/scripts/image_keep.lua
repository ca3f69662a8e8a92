-- Keep an image for a job. KEYS: image, jobs that need it. ARGV: job id, how long at most (milliseconds), the image.
local life = string.format('%d', math.max(tonumber(ARGV[2]), redis.call('PTTL', KEYS[1])))
redis.call('SET', KEYS[1], ARGV[3], 'PX', life)
redis.call('SADD', KEYS[2], ARGV[1])
redis.call('PEXPIRE', KEYS[2], life)
