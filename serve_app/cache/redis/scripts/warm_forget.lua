-- Forget warm-ups. KEYS: unfinished, all by when they expire, then the record of each. ARGV: their ids.
for number, id in ipairs(ARGV) do
  redis.call('ZREM', KEYS[1], id)
  redis.call('ZREM', KEYS[2], id)
  redis.call('DEL', KEYS[2 + number])
end
