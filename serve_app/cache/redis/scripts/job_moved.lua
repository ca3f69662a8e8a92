-- Records of the former layout were moved: remove them, unless one was written anew meanwhile.
-- KEYS: the former index, then a record each. ARGV: for each its id and what was moved ('' when there was none).
for number = 2, #KEYS do
  local id, moved = ARGV[2 * number - 3], ARGV[2 * number - 2]
  if (redis.call('GET', KEYS[number]) or '') == moved then
    redis.call('DEL', KEYS[number])
    redis.call('ZREM', KEYS[1], id)
  end
end
