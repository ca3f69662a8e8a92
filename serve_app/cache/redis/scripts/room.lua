-- Before scripts that write values into a server that holds records too, which need room when values have filled it.
-- reserve: the share of the memory that values leave to records (0: it holds none). Where values are evicted for what
-- comes they need not stop: records carry no TTL, so only values go. Returns whether a value may be written.
local function has_room(reserve)
  if tonumber(reserve) == 0 then
    return true
  end
  local used, bound, evicts = memory()
  return bound == 0 or evicts or used < bound * (1 - tonumber(reserve))
end
