-- Before scripts that let go of images. KEYS: as of image_keep.
local function let_go(image, job)
  if redis.call('ZREM', KEYS[3], image .. job) == 0 then
    return
  end
  if redis.call('HINCRBY', KEYS[2], image, -1) <= 0 then
    redis.call('HINCRBY', KEYS[2], 'bytes', -redis.call('HSTRLEN', KEYS[1], image))
    redis.call('HDEL', KEYS[2], image, 'until:' .. image)
    redis.call('HDEL', KEYS[1], image)
  end
end
