-- Keep an image for a job. KEYS: images (hash), how many jobs need each and until when, and bytes of
--   all (hash), jobs by when they need
--   theirs no more (sorted set of image and job). ARGV: now ('' for the server's clock), image, job id, how long at most
--   (milliseconds), most bytes of all, the image. Returns 1, 0 when there is no room; nothing has a TTL.
local now = time_of(ARGV[1])
local image, ends = ARGV[2], string.format('%.0f', now + tonumber(ARGV[4]))
if redis.call('HEXISTS', KEYS[1], image) == 0 then
  local used, bound, evicts = memory()
  local most = tonumber(ARGV[5])
  if bound > 0 then most = math.min(most, bound / 4) end
  local bytes = tonumber(redis.call('HGET', KEYS[2], 'bytes') or '0')
  if bytes + #ARGV[6] > most or (bound > 0 and not evicts and used + #ARGV[6] > bound * 0.9) then
    return 0
  end
  redis.call('HSET', KEYS[1], image, ARGV[6])
  redis.call('HINCRBY', KEYS[2], 'bytes', #ARGV[6])
end
local member = image .. ARGV[3]
if not redis.call('ZSCORE', KEYS[3], member) then
  redis.call('HINCRBY', KEYS[2], image, 1)
end
redis.call('ZADD', KEYS[3], 'GT', ends, member)
local latest = tonumber(redis.call('HGET', KEYS[2], 'until:' .. image) or '0')
redis.call('HSET', KEYS[2], 'until:' .. image, string.format('%.0f', math.max(latest, tonumber(ends))))
return 1
