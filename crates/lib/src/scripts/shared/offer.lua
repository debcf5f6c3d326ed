-- Who waits, and what is offered to whom. Needs free_set.
--
-- A waiter is in `waiters` by its turn, in `alive` until it is thought dead, and in `waiting` with what it asked for
-- (JSON). An entry of `wants` begins with a class, then come the turn (16 digits) and the waiter: resources of that class
-- would do. Classes: '*' NUL, whatever there is; '=' and the beginning of an entry of `by-label`; before either, '@' name
-- NUL: of what is reserved for that name. Who wants several is in class '#' NUL alone. What was offered to it is in `waiting`
-- under waiter NUL: a JSON list of id, token, ...; it stays there for a while after it was claimed, for who asks again as the
-- reply was lost. Then the waiter is in `alive` alone.
--
-- An offer is a lease that has expired already: nobody can renew it, and it is reclaimed CLOCK_SLACK from now on unless
-- it is claimed. Its record has UNCLAIMED for the time of the grant, and the waiter in the holder's JSON.
local BURIED_AT_ONCE = 16 -- dead waiters that one step buries
local PASSED_OVER = 200 -- entries that one search passes over

local function waiting_room()
  local room = {}
  -- Whether it is known who gathers; who does, and what it asked for.
  local is_known, gatherer, gathered = false, nil, nil

  local function recount()
    local before = WAIT_COUNT
    WAIT_COUNT = call('ZCARD', WAITERS)
    call('HSET', META, 'waiters', WAIT_COUNT)
    if (before == 0) ~= (WAIT_COUNT == 0) then restate() end
  end

  function room.request(waiter)
    local json = call('HGET', WAITING, waiter)
    return json and cjson.decode(json)
  end

  -- It is offered to from now on, in its turn.
  function room.want(waiter, request)
    is_known = false
    for _, class in ipairs(request.classes) do call('ZADD', WANTS, 0, class .. request.turn .. waiter) end
  end

  -- It is not offered to any more.
  function room.sated(waiter, request)
    is_known = false
    for _, class in ipairs(request.classes) do call('ZREM', WANTS, class .. request.turn .. waiter) end
  end

  -- It has its place no more.
  function room.depart(waiter, request)
    room.sated(waiter, request)
    if call('ZREM', WAITERS, waiter) == 1 and request.n > 1 then call('HINCRBY', META, 'gathering', -1) end
    recount()
  end

  -- It is gone.
  function room.drop(waiter)
    local request = room.request(waiter)
    if request then
      room.depart(waiter, request)
    elseif call('ZREM', WAITERS, waiter) == 1 then
      recount()
    end
    call('HDEL', WAITING, waiter, waiter .. '\0')
    call('ZREM', ALIVE, waiter)
  end

  function room.enter(waiter, request, turn)
    request.turn = format('%016.0f', turn)
    call('ZADD', WAITERS, format('%.0f', turn), waiter)
    call('HSET', WAITING, waiter, cjson.encode(request))
    room.want(waiter, request)
    if request.n > 1 then call('HINCRBY', META, 'gathering', 1) end
    recount()
  end

  -- Takes back that something was offered: the grant never was.
  function room.retract(count)
    GRANTED = GRANTED - count
    call('HSET', META, 'granted', GRANTED)
  end

  -- Drops who has not been heard of for too long. Whether there are more.
  function room.bury()
    local dead = call('ZRANGEBYSCORE', ALIVE, '-inf', format('%d', NOW), 'LIMIT', 0, BURIED_AT_ONCE)
    for _, waiter in ipairs(dead) do room.drop(waiter) end
    return #dead == BURIED_AT_ONCE
  end

  local function is_alive(waiter)
    local until_when = call('ZSCORE', ALIVE, waiter)
    return until_when and tonumber(until_when) > NOW
  end

  -- What a live waiter asked for. One that is dead, and its entry of `wants`, must not stand in the way of all others: nil.
  local function living(waiter, entry)
    local request = is_alive(waiter) and room.request(waiter)
    if request then return request end
    room.drop(waiter)
    call('ZREM', WANTS, entry)
  end

  -- The first in line of those who want several, as many as the pool has: it alone gathers. Second result: what it asked for.
  function room.gatherer()
    local from = '[#\0'
    for _ = 1, PASSED_OVER do
      if is_known then break end
      local entry = call('ZRANGEBYLEX', WANTS, from, '(#\0:', 'LIMIT', 0, 1)[1]
      local request = entry and living(sub(entry, 19), entry)
      if request and request.n > most_at_once(request.n) then
        -- The pool has become too small for it.
        from, request = '(' .. entry, nil
      end
      gatherer, gathered = request and sub(entry, 19), request or nil
      is_known = request ~= nil or not entry
    end
    return gatherer, gathered
  end

  -- The same, if such a resource would do for it.
  function room.gatherer_of(record)
    local waiter, request = room.gatherer()
    if waiter and fits(request.selectors, record) then return waiter, request end
  end

  -- The first live waiter that such a resource would do for, and what it asked for. Of those who want several, only the one
  -- that gathers.
  function room.first_for(record, reserved_for)
    local reserved = reserved_for and '@' .. reserved_for .. '\0' or ''
    local classes = { reserved .. '*\0' }
    for _, prefix in ipairs(label_prefixes(record)) do classes[#classes + 1] = reserved .. '=' .. prefix end
    local first, wanted
    for _ = 1, PASSED_OVER do
      local found
      first = nil
      for _, class in ipairs(classes) do
        local entry = call('ZRANGEBYLEX', WANTS, '[' .. class, '(' .. class .. ':', 'LIMIT', 0, 1)[1]
        local place = entry and sub(entry, #class + 1)
        if place and (not first or place < first) then first, found = place, entry end
      end
      if not first then break end
      wanted = living(sub(first, 17), found)
      if wanted then break end
    end
    local waiter, request
    if not reserved_for then waiter, request = room.gatherer_of(record) end
    if waiter and not (wanted and first < request.turn .. waiter) then return waiter, request end
    if wanted then return sub(first, 17), wanted end
  end

  -- Whether enough is free for who gathers, beside one more. Quick: it may say so though it is not.
  local function may_suffice(request)
    if SHARED then return true end
    if not request.selectors then return call('ZCARD', FREE) + 1 >= request.n end
    local count = 1
    for _, selector in ipairs(request.selectors) do
      for k = 2, #selector do
        count = count + call('ZLEXCOUNT', BY_LABEL, '[' .. selector[k], '(' .. selector[k] .. ':')
      end
    end
    return count >= request.n
  end

  local function offer_all(waiter, request, resources)
    local offered = {}
    local holder = format('{"waiter":%s,', cjson.encode(waiter)) .. sub(request.holder, 2)
    for _, resource in ipairs(resources) do
      local id, token = hold(resource, UNCLAIMED, holder, format('%d', NOW))
      offered[#offered + 1], offered[#offered + 2] = id, format('%016.0f', token)
    end
    call('HSET', WAITING, waiter .. '\0', cjson.encode(offered))
    room.sated(waiter, request)
    redis.pcall('PUBLISH', request.channel, waiter)
  end

  -- Offers a resource, which is in no place now (of a shared pool: not in `free`), to the first in line for it. Whether
  -- someone took it. Who wants several gets them all at once.
  function room.offer(resource, record, reserved_for)
    local waiter, request = room.first_for(record, reserved_for)
    if not waiter then return false end
    if request.n == 1 then
      offer_all(waiter, request, { resource })
      return true
    end
    if not may_suffice(request) then return false end
    -- One of each first: what is shared is spread.
    local others, scores, records = look(request.selectors, request.n)
    local chosen, left = { resource }, request.n - 1
    local rooms, moved = {}, {}
    for k, other in ipairs(others) do rooms[k] = room_of(other) end
    local own, before = room_of(resource) - 1, nil
    while left > 0 and left ~= before do
      before = left
      for k, other in ipairs(others) do
        if left > 0 and rooms[k] > 0 then
          chosen[#chosen + 1] = other
          rooms[k], left, moved[k] = rooms[k] - 1, left - 1, true
        end
      end
      if left > 0 and own > 0 then
        chosen[#chosen + 1] = resource
        own, left = own - 1, left - 1
      end
    end
    if left > 0 then return false end
    local names, turns, items = {}, {}, {}
    for k in pairs(moved) do names[#names + 1], turns[#turns + 1], items[#items + 1] = others[k], scores[k], records[k] end
    if #names > 0 then leave_free(names, items, turns) end
    offer_all(waiter, request, chosen)
    return true, names
  end

  return room
end

-- Made when it is first needed: most pools have nobody waiting.
local room
local function waiters()
  room = room or waiting_room()
  return room
end
