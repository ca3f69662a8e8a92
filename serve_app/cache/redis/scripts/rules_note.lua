-- Remember labels of videos that were asked for with a tag. KEYS: the tag's labels (set), all such sets by when a request
--   last asked (sorted set). ARGV: now ('' for the server's clock), labels. No TTL: an eviction policy could use it.
redis.call('SADD', KEYS[1], unpack(ARGV, 2))
redis.call('PERSIST', KEYS[1])  -- an earlier release gave it a TTL
redis.call('ZADD', KEYS[2], string.format('%.0f', (time_of(ARGV[1]))), KEYS[1])
return 1
