-- Remove what is too old or too much, a bounded number of entries. ARGV: now ('' for the server's clock), how many at
--   most, most records, most bytes of them, how long a deletion is remembered after the job was made.
-- Returns how many were removed; when it is that many, there may be more.
local now, most = time_of(ARGV[1]), tonumber(ARGV[2])
local count = 0
local due = string.format('%.0f', now)
for _, class in ipairs({HITS, ENDED, OPEN}) do
  for _, id in ipairs(redis.call('ZRANGE', class, '-inf', due, 'BYSCORE', 'LIMIT', 0, most - count)) do
    drop(id, class)
    count = count + 1
  end
end
for _, marked in ipairs({MARKED, HIT_MARKED}) do
  for _, name in ipairs(redis.call('ZRANGE', marked, '-inf', due, 'BYSCORE', 'LIMIT', 0, most - count)) do
    unmark(name)
    count = count + 1
  end
end
local forgotten = string.format('%.3f', (now - tonumber(ARGV[5])) / 1000)
for _, id in ipairs(redis.call('ZRANGE', DELETED, '-inf', '(' .. forgotten, 'BYSCORE', 'LIMIT', 0, most - count)) do
  redis.call('ZREM', DELETED, id)
  count = count + 1
end
local budget = budget_of(ARGV[3], ARGV[4])
count = count + trim(budget, most - count, 0)
return count + trim_marks(budget, most - count)
