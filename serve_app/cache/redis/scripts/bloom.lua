-- Before the scripts that read or set a shard's Bloom filter (B. H. Bloom, 1970; layers as in Almeida et al., "Scalable
-- Bloom Filters", 2007). A filter is a string of bits: layers one after the other, each with room for twice as many
-- names as the one before and half its share of false positives, 2^-9, 2^-10, ...: below 2^-8 in all, however many grow,
-- half of what is promised, because a full filter of many layers comes so near its bound that chance decides.
-- capacity: names of the first layer. number: of a layer, from 0. Returns its hash functions, bits, and room for names.
local function layer_of(capacity, number)
  local room, hashes = capacity * 2 ^ number, 9 + number
  return hashes, math.ceil(room * hashes / math.log(2)), room
end

-- Returns where the layer's bits begin, in whole bytes' worth of bits.
local function start_of(capacity, number)
  local start = 0
  for before = 0, number - 1 do
    local _, bits = layer_of(capacity, before)
    start = start + math.ceil(bits / 8) * 8
  end
  return start
end

-- A name's positions in a layer by enhanced double hashing (Dillinger and Manolios, 2004): position k is
-- one + k * two + (k^3 - k) / 6, modulo the bits. The name is an HMAC, its digits are the hashes; the first two chose the
-- shard, so others are taken. Returns the first position and the first step; each step is k longer than the one before.
local function walk_of(name, bits)
  return tonumber(string.sub(name, 9, 20), 16) % bits, tonumber(string.sub(name, 21, 32), 16) % (bits - 1) + 1
end

local function is_in_layer(key, name, capacity, number)
  local hashes, bits = layer_of(capacity, number)
  local start = start_of(capacity, number)
  local position, step = walk_of(name, bits)
  for k = 1, hashes do
    if redis.call('GETBIT', key, start + position) == 0 then
      return false
    end
    position, step = (position + step) % bits, step + k
  end
  return true
end

local function is_in(key, name, capacity, layers)
  for number = layers - 1, 0, -1 do
    if is_in_layer(key, name, capacity, number) then
      return true
    end
  end
  return false
end

-- Make room for one more layer, zeros to its end: a string that is shorter than its layers has lost something.
local function grow(meta, prefix, key, capacity, layers)
  redis.call('SETBIT', key, start_of(capacity, layers + 1) - 1, 0)
  redis.call('HSET', meta, prefix .. 'layers', layers + 1, prefix .. 'newest', 0)
end

local function set_bits(key, name, capacity, number)
  local hashes, bits = layer_of(capacity, number)
  local start, operations = start_of(capacity, number), {}
  local position, step = walk_of(name, bits)
  for k = 1, hashes do
    operations[4 * k - 3], operations[4 * k - 2], operations[4 * k - 1], operations[4 * k] = 'SET', 'u1', start + position, 1
    position, step = (position + step) % bits, step + k
  end
  redis.call('BITFIELD', key, unpack(operations))
end

-- prefix: '' for the filter in use, 'next_' for the one that is being built. names: from the `first` on. fresh: whether
-- they are surely not in the filter, so that it need not be looked at first.
local function add_to(meta, prefix, key, names, first, fresh)
  local fields = redis.call('HMGET', meta, prefix .. 'capacity', prefix .. 'layers', prefix .. 'newest')
  local capacity, layers, newest = tonumber(fields[1]), tonumber(fields[2]), tonumber(fields[3])
  local added = 0
  for number = first, #names do
    if fresh or not is_in(key, names[number], capacity, layers) then
      local _, _, room = layer_of(capacity, layers - 1)
      if newest >= room then
        grow(meta, prefix, key, capacity, layers)
        layers, newest = layers + 1, 0
      end
      set_bits(key, names[number], capacity, layers - 1)
      newest, added = newest + 1, added + 1
    end
  end
  if added > 0 then
    redis.call('HSET', meta, prefix .. 'newest', newest)
    redis.call('HINCRBY', meta, prefix .. 'names', added)
  end
end

-- Returns '1' when the name may be stored, '0' when it surely is not, '' when this filter does not know.
local function may_be_stored(meta, key, name)
  local fields = redis.call('HMGET', meta, 'complete', 'capacity', 'layers')
  if fields[1] ~= '1' then
    return ''
  end
  local capacity, layers = tonumber(fields[2]), tonumber(fields[3])
  if redis.call('STRLEN', key) * 8 < start_of(capacity, layers) then
    return ''
  end
  return is_in(key, name, capacity, layers) and '1' or '0'
end
