-- The filter that was built comes into use. KEYS: meta (hash), bits, next bits. ARGV: now ('' for the server's clock),
--   the builder's token. Returns 1, or 0 to a builder that another one has taken over from.
local built = redis.call('HMGET', KEYS[1], 'next', 'next_capacity', 'next_layers', 'next_newest', 'next_names')
if built[1] ~= ARGV[2] then
  return 0
end
redis.call('RENAME', KEYS[3], KEYS[2])
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'complete', '1', 'capacity', built[2], 'layers', built[3], 'newest', built[4],
  'names', built[5], 'built_at', string.format('%.0f', time_of(ARGV[1])))
return 1
