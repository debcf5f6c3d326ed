-- Leaving the declaration: an origin lets go of items, and an item without origins leaves the pool. Needs settle, origins.

-- At most so many leases of a shared pool end in one call; it may have to be made again for the rest.
local REVOKED_AT_ONCE = 200

-- Ends leases whoever holds them.
local function revoke_leases(ids)
  local records = call('HMGET', HOLDERS, unpack(ids))
  for i = 1, #ids do records[i] = records[i] or '' end
  release(ids, records)
  call('HINCRBY', META, 'revoked', #ids)
end

-- An origin ('' = every one) lets go of resources (each once). keep_digest: what it declared is as its digest says all the
-- same. Returns how many left, of these draining, of these revoked.
local function let_go(origin, named, keep_digest, revoke)
  assure()
  if origin ~= '' and call('ZCARD', MISSING) > 0 then
    for _, resource in ipairs(named) do call('ZREM', MISSING, origin .. '\0' .. resource) end
  end
  local old = call('HMGET', ITEMS, unpack(named))
  local leaving, kept, stale = {}, {}, {}
  for i, resource in ipairs(named) do
    if old[i] then
      local left, mine = {}, origin == ''
      if origin ~= '' then
        for _, other in ipairs(record_origins(old[i])) do
          if other == origin then mine = true else left[#left + 1] = other end
        end
      end
      if mine and #left == 0 then
        leaving[#leaving + 1] = resource
      elseif mine then
        kept[#kept + 1] = resource
        kept[#kept + 1] = with_origins(old[i], left)
        for _, other in ipairs(left) do stale[other] = true end
      end
    end
  end
  if #kept > 0 then
    call('HSET', ITEMS, unpack(kept))
    -- Who still declares it brings its own facts at the next synchronisation.
    for other in pairs(stale) do forget_digest(other) end
  end
  if not keep_digest and origin ~= '' and #kept + #leaving > 0 then forget_digest(origin) end
  if #leaving == 0 then return 0, 0, 0 end
  local draining, revoked, ended, ending = 0, 0, {}, 0
  local expiries = SHARED and {} or call('ZMSCORE', LEASES, unpack(leaving))
  for i, resource in ipairs(leaving) do
    local ids = { expiries[i] and resource or nil }
    if SHARED then ids = shares_of(resource, revoke and math.max(1, REVOKED_AT_ONCE - ending) or 1) end
    if #ids > 0 then
      if revoke then revoked = revoked + 1 else draining = draining + 1 end
      if SHARED then call('ZADD', MISSING, '+inf', '\0' .. resource) end
      if revoke and ending < REVOKED_AT_ONCE then
        ended[#ended + 1] = ids
        if SHARED then ending = ending + #ids end
      end
    end
  end
  if INDEXES then
    leave_labels(leaving, call('HMGET', ITEMS, unpack(leaving)), call('ZMSCORE', FREE, unpack(leaving)))
  end
  call('HDEL', ITEMS, unpack(leaving))
  call('ZREM', FREE, unpack(leaving))
  call('ZREM', QUARANTINE, unpack(leaving))
  if HOLDS then
    call('HDEL', MARKS, unpack(leaving))
    recount_holds()
  end
  for _, ids in ipairs(ended) do revoke_leases(ids) end
  return #leaving, draining, revoked
end
