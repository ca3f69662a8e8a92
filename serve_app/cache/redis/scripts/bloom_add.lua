-- Names that are about to be stored, into the filter in use and into the one that is being built, if there are such.
-- KEYS: meta (hash), bits, next bits. ARGV: the builder's token ('' for all others), names of this shard.
-- A builder adds to its own filter alone, and its list has each name once. Returns 1, or 0 to a builder that another one
-- has taken over from.
local known = redis.call('HMGET', KEYS[1], 'complete', 'next')
if ARGV[1] ~= '' then
  if known[2] ~= ARGV[1] then
    return 0
  end
  add_to(KEYS[1], 'next_', KEYS[3], ARGV, 2, true)
  return 1
end
if known[1] == '1' then add_to(KEYS[1], '', KEYS[2], ARGV, 2, false) end
if known[2] then add_to(KEYS[1], 'next_', KEYS[3], ARGV, 2, false) end
return 1
