-- What a request asks for, and serving it from what is free. Needs grant, free_set, offer, settle, reclaim.

-- Reads a demand, JSON: {n: how many, selectors: as `find` takes them, session: which one its leases are part of}. Its
-- field `refused` is the answer when it can't be met, now or later:
--   {false, 'count', how many the pool could grant at most} | {false, 'index', the one that is not there, those that
--   are} | {false, 'session'} (it is over)
local function demand(json)
  local request = json ~= '' and cjson.decode(json) or {}
  request.n = request.n or 1
  if request.selectors then
    local known, names = {}, {}
    for k, index in ipairs(INDEXES or {}) do
      names[k] = table.concat(index, ',')
      known[names[k]] = true
    end
    for _, selector in ipairs(request.selectors) do
      if not known[selector[1]] then request.refused = { false, 'index', selector[1], unpack(names) } end
    end
  end
  if request.n > 1 then
    local most = most_at_once(request.n)
    if request.n > most then request.refused = { false, 'count', most } end
  end
  if request.session then
    local over = call('ZSCORE', SESSIONS, request.session)
    if not over or tonumber(over) <= NOW then request.refused = { false, 'session' } end
  end
  return request
end

-- Grants a resource that is in no place, or free in a shared pool. Returns what the reply says of it.
local function grant(request, resource, record)
  local expiry = format('%d', NOW + request.ttl)
  if LONGEST ~= -1 and request.ttl > LONGEST then
    LONGEST = request.ttl
    call('HSET', META, 'longest', format('%d', LONGEST))
  end
  if request.session then expiry = '+inf' end
  local id, token = hold(resource, format('%013d', NOW), request.holder, expiry)
  if request.session then call('ZADD', SESSION_LEASES, 0, request.session .. '\0' .. id) end
  return { resource, token, request.ttl, record }
end

-- Remembers what a name got. in_the_way: the holder record of the live lease on the resource that it had before.
local function rebind(name, resource, in_the_way)
  local record = call('HGET', BINDS, name)
  local kind = record and sub(record, 1, 1)
  -- A declared one is never moved, and a worker that was killed and came back under its name keeps its binding.
  if kind and kind ~= 'a' then return end
  if in_the_way and cjson.decode(sub(in_the_way, 30)).bind == name then return end
  call('HSET', BINDS, name, format('a%013d', BINDING_TTL) .. resource)
  if BINDING_TTL > 0 then
    call('ZADD', BIND_EXPIRY, format('%d', NOW + BINDING_TTL), name)
  else
    call('ZREM', BIND_EXPIRY, name)
  end
end

-- The resource a name is bound to, whether it may have no other, and the record of the binding. What is over on the way
-- is reclaimed.
local function bound(name)
  local record = call('HGET', BINDS, name)
  if not record then return nil end
  local over = call('ZSCORE', BIND_EXPIRY, name)
  if over and tonumber(over) <= NOW then
    local reserved = end_binding(name, record, true)
    if reserved then resettle({ reserved }) end
    return nil
  end
  local kind = sub(record, 1, 1)
  if kind == 'D' or kind == 'R' then return nil end
  return sub(record, 15), required(kind)
end

-- Brings a resource to where it belongs by now. Second result: the record of the live lease in its way, if one is.
local function ripen(resource)
  if not SHARED then
    local expiry = call('ZSCORE', LEASES, resource)
    if expiry then
      local record = call('HGET', HOLDERS, resource)
      if tonumber(expiry) > NOW - CLOCK_SLACK then return false, record end
      expire({ resource }, {})
    end
  end
  local over = call('ZSCORE', QUARANTINE, resource)
  if over then
    if tonumber(over) > NOW then return false end
    resettle({ resource })
  end
  return true
end

-- Whether a resource that has ripened can be granted to this name now; its item record, and its score if it is free.
local function at_hand(request, resource)
  local record = call('HGET', ITEMS, resource)
  if not record or not fits(request.selectors, record) then return nil end
  local score = call('ZSCORE', FREE, resource)
  if score and room_of(resource) > 0 then return record, score end
  if call('HGET', RESERVED, resource) ~= request.name or call('ZSCORE', QUARANTINE, resource) then return nil end
  if SHARED then return room_of(resource) > 0 and record or nil end
  return not call('ZSCORE', LEASES, resource) and record or nil
end

-- Takes one free (or reserved) resource and grants it.
local function take(request, resource, record, score)
  if not SHARED and score then leave_free({ resource }, { record }, { score }) end
  local granted = grant(request, resource, record)
  if SHARED and score then take_turns(resource, record, score) end
  return granted
end

-- All of several resources, or nothing. Of a shared pool, one of each before the second of any.
local function take_all(request)
  local resources, scores, records = look(request.selectors, request.n)
  if count_room(resources, request.n) < request.n then return false end
  local granted, left = {}, request.n
  while left > 0 do
    for k, resource in ipairs(resources) do
      if left > 0 and room_of(resource) > 0 then
        if SHARED then scores[k] = tonumber(call('ZSCORE', FREE, resource)) end
        for _, part in ipairs(take(request, resource, records[k], scores[k])) do granted[#granted + 1] = part end
        left = left - 1
      end
    end
  end
  return granted
end

-- The first that is free, fits, and is not kept for who gathers several: resource, score, record.
local function first_free(selectors)
  local _, gathered
  if GATHERING then _, gathered = waiters().gatherer() end
  if gathered and not gathered.selectors then return nil end
  for _, seen in ipairs(gathered and { AT_FIRST, AT_MOST } or { 1, AT_FIRST, AT_MOST }) do
    local resources, scores, records = look(selectors, seen)
    local full = {}
    for k, resource in ipairs(resources) do
      if not gathered or not fits(gathered.selectors, records[k]) then
        if room_of(resource) > 0 then return resource, scores[k], records[k] end
        full[#full + 1] = resource
      end
    end
    -- More of them may be held than since maxHolders was lowered.
    if #full > 0 then resettle(full) end
    if #resources < seen then return nil end
  end
end

-- Whether all that is over by now has been reclaimed.
local reclaimed = false

-- What can be granted at once, as the reply has it; false when nothing can.
local function serve_now(request)
  local in_the_way
  if request.name ~= '' then
    for try = 1, 2 do
      local resource, only = bound(request.name)
      if not resource then break end
      local ripe
      ripe, in_the_way = ripen(resource)
      local record, score
      if ripe then record, score = at_hand(request, resource) end
      if record and not (GATHERING and score and waiters().gatherer_of(record)) then
        local granted = take(request, resource, record, score)
        rebind(request.name, resource)
        return granted
      end
      if not only then break end
      if reclaimed or try == 2 then return false end
      -- A session that is over may have it, or one of many holders.
      local _, _, _, more = reclaim(16)
      reclaimed = not more
    end
  end
  if GATHERING and request.n > 1 and waiters().gatherer() then return false end
  for try = 1, 2 do
    if request.n > 1 then
      local granted = take_all(request)
      if granted then return granted end
    else
      local resource, score, record = first_free(request.selectors)
      if resource then
        local granted = take(request, resource, record, score)
        if request.name ~= '' then rebind(request.name, resource, in_the_way) end
        return granted
      end
    end
    -- Nothing is free: what is over is reclaimed.
    if reclaimed or try == 2 then return false end
    local _, _, _, more = reclaim(math.max(16, request.n))
    reclaimed = not more
  end
end
