-- Before scripts that ask how full the server is; INFO costs a script 15 microseconds.
-- Returns bytes used, the bound (0: none), whether what has a TTL is evicted at the bound ('volatile-*').
-- A server that does not tell scripts counts as one without a bound.
local function memory()
  local info = redis.pcall('INFO', 'memory')
  if type(info) ~= 'string' then
    return 0, 0, false
  end
  local used = tonumber(string.match(info, 'used_memory:(%d+)'))
  local bound = tonumber(string.match(info, 'maxmemory:(%d+)'))
  local evicts = string.match(info, 'maxmemory_policy:volatile') ~= nil
  return used or 0, bound or 0, evicts
end
