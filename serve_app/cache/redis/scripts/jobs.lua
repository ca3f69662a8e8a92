-- Before every script over job records, whose KEYS are always the same eleven, in one slot:
local RECORDS, LISTED, BEATS = KEYS[1], KEYS[2], KEYS[3]  -- id to record (hash), id by creation, unfinished by heartbeat
local OPEN, ENDED, HITS = KEYS[4], KEYS[5], KEYS[6]  -- each record is in one of these, by when it expires
local DELETED = KEYS[7]  -- ids that were deleted, by the job's creation
local MARKS, MARKED, HIT_MARKED = KEYS[8], KEYS[9], KEYS[10]  -- name to mark (hash); name by expiry, hits' apart
local NOTES = KEYS[11]  -- bytes of each class, and the floor of deletions (hash)
-- Nothing here has a TTL: an eviction policy could use it. What is too old or too much is removed by scripts, a bounded
-- number of entries a call, and who reads takes what has expired for absent meanwhile.
-- OPEN: accepted and unfinished. ENDED: accepted once. HITS: complete when they came, which their ids can stand for.
-- Times are milliseconds, creations seconds.
local OVERHEAD = 400  -- bytes of a record's entries beside its text and its id
local TOMBSTONE = 250
local MARK = 500

local function size_of(id)
  return redis.call('HSTRLEN', RECORDS, id) + 2 * #id + OVERHEAD
end

local function bytes_of(class)
  return tonumber(redis.call('HGET', NOTES, class) or '0')
end

-- Returns the class of a record and when it expires, nothing when there is none.
local function class_of(id)
  for _, class in ipairs({OPEN, ENDED, HITS}) do
    local expires = redis.call('ZSCORE', class, id)
    if expires then
      return class, tonumber(expires)
    end
  end
end

-- Forget a record, of this class where that is known; returns whether there was one.
local function drop(id, class)
  class = class or class_of(id)
  if not class then
    return false
  end
  redis.call('HINCRBY', NOTES, class, -size_of(id))
  redis.call('ZREM', class, id)
  redis.call('HDEL', RECORDS, id)
  redis.call('ZREM', LISTED, id)
  redis.call('ZREM', BEATS, id)
  return true
end

-- Say that an unfinished job is followed: not before any other, whose time a step of the clock may have left ahead.
local function beat(id, now)
  local newest = redis.call('ZRANGE', BEATS, -1, -1, 'WITHSCORES')[2]
  redis.call('ZADD', BEATS, string.format('%.0f', math.max(now, tonumber(newest or '0'))), id)
end

local function put(id, record, created, expires, class)
  local earlier = class_of(id)
  if earlier then
    redis.call('HINCRBY', NOTES, earlier, -size_of(id))
  end
  redis.call('HSET', RECORDS, id, record)
  if earlier and earlier ~= class then
    redis.call('ZREM', earlier, id)
  end
  redis.call('ZADD', class, expires, id)
  redis.call('ZADD', LISTED, created, id)
  redis.call('HINCRBY', NOTES, class, size_of(id))
end

-- Deletions of jobs created up to here are not remembered one by one any more: all of them count as deleted.
local function floor_of()
  return tonumber(redis.call('HGET', NOTES, 'floor') or '-inf')
end

-- Whether a job that has no record was deleted. created: when it was made, '' for not known.
local function is_deleted(id, created)
  if redis.call('ZSCORE', DELETED, id) then
    return true
  end
  return created ~= '' and tonumber(created) <= floor_of()
end

-- Remove the first of a class, as long as `too_much` says so and at most `most`; returns how many.
local function shrink(class, most, too_much)
  local count = 0
  while count < most and too_much() do
    local first = redis.call('ZRANGE', class, 0, 0)[1]
    if not first then
      return count
    end
    drop(first, class)
    count = count + 1
  end
  return count
end

-- What records may take, of a server with a bound no more than half: {count, bytes}.
local function budget_of(count, bytes)
  local used, bound, evicts = memory()
  bytes = tonumber(bytes)
  if bound > 0 then
    bytes = math.min(bytes, bound / 2)
  end
  return {count = tonumber(count), bytes = bytes, used = used, bound = evicts and 0 or bound}
end

local function open_and_ended()
  return redis.call('ZCARD', OPEN) + redis.call('ZCARD', ENDED), bytes_of(OPEN) + bytes_of(ENDED)
end

-- Make room for `fresh` bytes of records more: hits beyond their own share go, then ended jobs beyond theirs, the oldest
-- first; when the server itself is nearly full and evicts nothing, both go, hits before ended jobs.
local function trim(budget, most, fresh)
  local freed = 0
  local function hits_too_much()
    return redis.call('ZCARD', HITS) > budget.count or bytes_of(HITS) > budget.bytes / 4
  end
  local function jobs_too_much()
    local count, bytes = open_and_ended()
    return count > budget.count or bytes > budget.bytes
  end
  local function nearly_full()
    return budget.bound > 0 and budget.used + fresh - freed > budget.bound * 0.9
  end
  local count = shrink(HITS, most, hits_too_much)
  count = count + shrink(ENDED, most - count, jobs_too_much)
  for _, class in ipairs({HITS, ENDED}) do
    count = count + shrink(class, most - count, function()
      local first = nearly_full() and redis.call('ZRANGE', class, 0, 0)[1]
      if first then freed = freed + size_of(first) end
      return first
    end)
  end
  return count
end

-- Whether the server has no memory for `fresh` bytes more, with something left over for what it does anyway.
local function no_memory(budget, fresh)
  return budget.bound > 0 and budget.used + fresh > budget.bound * 0.97
end

-- Whether unfinished jobs alone leave no room for one more.
local function is_full(budget, fresh)
  return redis.call('ZCARD', OPEN) >= budget.count or bytes_of(OPEN) + fresh > budget.bytes or no_memory(budget, fresh)
end

-- Returns the mark of a name, nothing when it has expired.
local function mark_of(name, now)
  local ends = redis.call('ZSCORE', MARKED, name) or redis.call('ZSCORE', HIT_MARKED, name)
  if ends and tonumber(ends) > now then
    return redis.call('HGET', MARKS, name)
  end
end

local function unmark(name)
  redis.call('HDEL', MARKS, name)
  redis.call('ZREM', MARKED, name)
  redis.call('ZREM', HIT_MARKED, name)
end

local function mark(name, text, ends, class)
  redis.call('HSET', MARKS, name, text)
  redis.call('ZREM', class == HITS and MARKED or HIT_MARKED, name)
  redis.call('ZADD', class == HITS and HIT_MARKED or MARKED, string.format('%.0f', ends), name)
end

local function trim_marks(budget, most)
  local limit = math.min(budget.count, budget.bytes / 16 / MARK)
  local count = 0
  for _, marked in ipairs({HIT_MARKED, MARKED}) do
    while count < most and redis.call('ZCARD', marked) > limit do
      unmark(redis.call('ZRANGE', marked, 0, 0)[1])
      count = count + 1
    end
  end
  return count
end

-- Remember a deletion; beyond the budget the oldest job's is remembered by its creation alone.
local function bury(id, created, budget)
  redis.call('ZADD', DELETED, created, id)
  local limit = math.min(budget.count, budget.bytes / 8 / TOMBSTONE)
  local count = 0
  while count < 100 and redis.call('ZCARD', DELETED) > limit do
    local first = redis.call('ZRANGE', DELETED, 0, 0, 'WITHSCORES')
    redis.call('HSET', NOTES, 'floor', string.format('%.17g', math.max(floor_of(), tonumber(first[2]) + 1e-6)))  -- ids say it in microseconds
    redis.call('ZREM', DELETED, first[1])
    count = count + 1
  end
end
