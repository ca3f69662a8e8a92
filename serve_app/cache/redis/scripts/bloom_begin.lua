-- Begin to build a filter anew, beside the one in use; an earlier builder is taken over from.
-- KEYS: meta (hash), next bits. ARGV: the builder's token, capacity of the first layer at least.
-- The number of names in the filter in use says how many there will be: one layer then holds them all.
local names = tonumber(redis.call('HGET', KEYS[1], 'names') or '0')
local capacity = math.max(tonumber(ARGV[2]), math.ceil(names * 1.25))
redis.call('DEL', KEYS[2])
redis.call('HSET', KEYS[1], 'next', ARGV[1], 'next_capacity', capacity, 'next_names', 0)
grow(KEYS[1], 'next_', KEYS[2], capacity, 0)
return 1
