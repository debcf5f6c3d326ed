-- Where a resource goes. `settle` alone decides it; whatever ends a lease, a quarantine or a reservation ends here, but for
-- the plainest return (give_back.lua). Needs undo, free_set, offer.

-- When the marks (JSON: cause -> {until, reason}; until in ms, -1 = without end) are all over; nil if they are.
-- Second result: the marks still in force, nil when none, and whether some were dropped.
local function marks_in_force(json)
  local ends, left, dropped = nil, nil, false
  for cause, mark in pairs(cjson.decode(json)) do
    local over = mark['until']
    if over == -1 or over > NOW then
      if over == -1 then over = math.huge end
      if not ends or over > ends then ends = over end
      left = left or {}
      left[cause] = mark
    else
      dropped = true
    end
  end
  return ends, left, dropped
end

local function score_text(ms)
  if ms == math.huge then return '+inf' end
  return format('%d', ms)
end

-- Places resources that are in no place: of an exclusive pool without a live lease, of a shared one whoever holds them.
-- since: resource -> its turn (ms), for those that keep it. At most 200 resources a call.
local offers_left = 200 -- in one call; who is not reached is served when it asks next
local function settle(resources, since)
  local records = call('HMGET', ITEMS, unpack(resources))
  local marks, reserved
  if HOLDS then
    marks = call('HMGET', MARKS, unpack(resources))
    reserved = call('HMGET', RESERVED, unpack(resources))
  end
  local free, free_records, scores, held, forget, disturbed = {}, {}, {}, {}, {}, {}
  for i, resource in ipairs(resources) do
    local record, ends = records[i], nil
    if marks and marks[i] then
      local left, dropped
      ends, left, dropped = marks_in_force(marks[i])
      if not record or not left then
        forget[#forget + 1] = resource
      elseif dropped then
        call('HSET', MARKS, resource, cjson.encode(left))
      end
    end
    if record then
      local reserved_for = reserved and reserved[i]
      local room, offered = ends and 0 or room_of(resource), false
      if WAIT_COUNT > 0 and not SUSPENDED then
        while room > 0 and offers_left > 0 do
          offers_left = offers_left - 1
          local taken, others = waiters().offer(resource, record, reserved_for)
          if not taken then break end
          offered = true
          room = room_of(resource)
          if not SHARED then room = 0 end
          for _, other in ipairs(SHARED and others or {}) do disturbed[#disturbed + 1] = other end
        end
      end
      if ends then
        held[#held + 1] = score_text(ends)
        held[#held + 1] = resource
      elseif room > 0 and not reserved_for then
        -- What is shared goes behind all others with every grant, an offered one too.
        local kept = since and not (offered and ORDER == 'LeastRecentlyUsed') and since[resource]
        local turn = kept or SHARED and ORDER ~= 'Sequential' and next_turn() or NOW
        local score = free_score(record, turn)
        if WAIT_COUNT > 0 then
          -- At once: who gathers several counts it when the next one is offered.
          enter_free({ resource }, { record }, { score })
        else
          free[#free + 1], free_records[#free_records + 1], scores[#scores + 1] = resource, record, score
        end
      end
    end
  end
  if #forget > 0 then
    call('HDEL', MARKS, unpack(forget))
    recount_holds()
  end
  if #held > 0 then call('ZADD', QUARANTINE, unpack(held)) end
  if #free > 0 then enter_free(free, free_records, scores) end
  if #disturbed > 0 then settle(disturbed) end
end

-- Places resources that may be anywhere: a leased one of an exclusive pool stays where it is, a free one keeps its turn.
local function resettle(resources)
  assure()
  local leases = SHARED and {} or call('ZMSCORE', LEASES, unpack(resources))
  local scores = call('ZMSCORE', FREE, unpack(resources))
  local movable, since = {}, {}
  for i, resource in ipairs(resources) do
    if not leases[i] then
      movable[#movable + 1] = resource
      if scores[i] and ORDER ~= 'Sequential' then
        local turn = tonumber(scores[i]) % BAND
        -- A position left from an order that is no longer used is not a time.
        if turn > BAND / 8 then since[resource] = turn end
      end
    end
  end
  leave_free(resources, INDEXES and call('HMGET', ITEMS, unpack(resources)), scores)
  call('ZREM', QUARANTINE, unpack(resources))
  if #movable > 0 then settle(movable, since) end
end

-- Offers what is free and would do for a waiter, until it has been offered something. Where someone before it gathers
-- what comes first, it may be what comes later; thoroughly: much later.
local AT_FIRST, AT_MOST = 16, 200 -- how much of what is free is looked at
local function offer_free(waiter, request, thoroughly)
  local _, gathered = waiters().gatherer()
  thoroughly = thoroughly and request.n == 1 and gathered and gathered.selectors
  local gathers = false
  for _, seen in ipairs(request.n > 1 and { 1 } or { AT_FIRST, thoroughly and AT_MOST }) do
    local resources, _, records = look(request.selectors, seen)
    for k, resource in ipairs(resources) do
      if seen < AT_MOST or not fits(gathered.selectors, records[k]) then
        if call('HEXISTS', WAITING, waiter .. '\0') == 1 then return end
        local first, wanted = waiters().first_for(records[k])
        if first and not (wanted.n > 1 and gathers) then
          gathers = wanted.n > 1
          resettle({ resource })
        end
      end
    end
    if #resources < seen then return end
  end
end

-- Offers what is free to the first `count` in line, as far as they have not been offered anything.
local IN_FRONT = 16 -- for whom this is done when what was kept from them is kept no more
local function serve_line(count)
  if WAIT_COUNT == 0 or SUSPENDED then return end
  for _, waiter in ipairs(call('ZRANGE', WAITERS, 0, count - 1)) do
    local request = waiters().request(waiter)
    if request and call('HEXISTS', WAITING, waiter .. '\0') == 0 then
      if sub(request.classes[1], 1, 1) == '@' then
        local record = call('HGET', BINDS, request.name)
        if record then resettle({ sub(record, 15) }) end
      else
        offer_free(waiter, request)
      end
    end
  end
end

-- Of a shared pool: a resource was just granted, and is free no longer or behind all others.
local function take_turns(resource, record, score)
  leave_free({ resource }, { record }, { score })
  if room_of(resource) > 0 and not (HOLDS and call('HGET', RESERVED, resource)) then
    local turn = ORDER == 'LeastRecentlyUsed' and next_turn() or score % BAND
    enter_free({ resource }, { record }, { free_score(record, turn) })
  end
end

-- Adds or replaces one mark of a resource; `over` in ms, -1 = without end.
local function mark(resource, cause, over, reason)
  local json = call('HGET', MARKS, resource)
  local marks = json and cjson.decode(json) or {}
  marks[cause] = { ['until'] = over, reason = reason }
  call('HSET', MARKS, resource, cjson.encode(marks))
end

-- Ends the part that a lease has in a session, if it has one; its holder's JSON names it.
local function leave_session(id, record)
  if not string.find(record, '"session":"', 30, true) then return end
  local ok, holder = pcall(cjson.decode, sub(record, 30))
  if ok and type(holder.session) == 'string' then call('ZREM', SESSION_LEASES, holder.session .. '\0' .. id) end
end

-- Ends leases and places their resources. records: what `holders` says of each.
local function release(ids, records)
  -- What putting back needs; types have been proven by the caller's reading, or are found below.
  permit('ZADD')
  if HOLDS then permit('HSET') end
  if COOLDOWN > 0 or SHARED or INDEXES or WAIT_COUNT > 0 then assure() end
  for i, id in ipairs(ids) do
    if records[i] then leave_session(id, records[i]) end
  end
  call('HDEL', HOLDERS, unpack(ids))
  if SHARED then
    call('ZREM', LEASES, unpack(ids))
    call('ZREM', SHARES, unpack(ids))
    local resources, seen = {}, {}
    for i, id in ipairs(ids) do
      local resource = resource_of(id)
      if not seen[resource] then
        seen[resource] = true
        resources[#resources + 1] = resource
      end
    end
    resettle(resources)
    for _, resource in ipairs(resources) do
      -- What left the pool while it was held is gone with its last lease.
      if call('HEXISTS', ITEMS, resource) == 0 and count_holders(resource) == 0 then
        call('ZREM', MISSING, '\0' .. resource)
      end
    end
    return
  end
  local ok, failure = pcall(function()
    call('ZREM', LEASES, unpack(ids))
    if COOLDOWN > 0 then
      for i, resource in ipairs(ids) do
        -- What was only offered was not used.
        local used = sub(records[i] or '', 17, 29) ~= UNCLAIMED
        if used and call('HEXISTS', ITEMS, resource) == 1 then mark(resource, 'cooldown', NOW + COOLDOWN, 'cooling down') end
      end
      recount_holds()
    end
    settle(ids)
  end)
  if ok then return end
  put_back(ids, records, failure)
end
