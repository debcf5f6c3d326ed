-- Where a resource goes. `settle` alone decides it; whatever ends a lease, a quarantine or a reservation ends here.

-- After MARKS or RESERVED changed: whether there is anything in them, so that pools without pay nothing.
local function recount_holds()
  local count = call('HLEN', MARKS) + call('HLEN', RESERVED)
  call('HSET', META, 'holds', count)
  HOLDS = count > 0
end

-- An item's record: priority (4 digits), position (10), length of the origins (4), origins (JSON list), facts (JSON).
local function free_score(record, since)
  local band = (1000 - tonumber(sub(record, 1, 4))) * BAND
  if ORDER == 'Sequential' then return band + tonumber(sub(record, 5, 14)) end
  return band + since
end

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

-- Places resources that have no live lease and are in no other place. since: resource -> ms free, for those that
-- keep their turn. At most 200 resources a call.
local function settle(resources, since)
  local records = call('HMGET', ITEMS, unpack(resources))
  local marks, reserved
  if HOLDS then
    marks = call('HMGET', MARKS, unpack(resources))
    reserved = call('HMGET', RESERVED, unpack(resources))
  end
  local free, held, forget = {}, {}, {}
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
      if ends then
        held[#held + 1] = score_text(ends)
        held[#held + 1] = resource
      elseif not (reserved and reserved[i]) then
        free[#free + 1] = format('%d', free_score(record, since and since[resource] or NOW))
        free[#free + 1] = resource
      end
    end
  end
  if #forget > 0 then
    call('HDEL', MARKS, unpack(forget))
    recount_holds()
  end
  if #held > 0 then call('ZADD', QUARANTINE, unpack(held)) end
  if #free > 0 then call('ZADD', FREE, unpack(free)) end
end

-- Places resources that may be anywhere: a leased one stays where it is, a free one keeps its turn.
local function resettle(resources)
  assure()
  local leases = call('ZMSCORE', LEASES, unpack(resources))
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
  call('ZREM', FREE, unpack(resources))
  call('ZREM', QUARANTINE, unpack(resources))
  if #movable > 0 then settle(movable, since) end
end

-- Adds or replaces one mark of a resource; `over` in ms, -1 = without end.
local function mark(resource, cause, over, reason)
  local json = call('HGET', MARKS, resource)
  local marks = json and cjson.decode(json) or {}
  marks[cause] = { ['until'] = over, reason = reason }
  call('HSET', MARKS, resource, cjson.encode(marks))
end

-- Ends leases and places their resources. records: what `holders` says of each; on failure they are put back as leases
-- that have ended, for gc to try again, so that no resource is ever in no place.
local function release(resources, records)
  -- What putting back needs; types have been proven by the caller's reading, or are found below.
  permit('ZADD')
  if HOLDS then permit('HSET') end
  if COOLDOWN > 0 then assure() end
  call('HDEL', HOLDERS, unpack(resources))
  local ok, failure = pcall(function()
    call('ZREM', LEASES, unpack(resources))
    if COOLDOWN > 0 then
      for _, resource in ipairs(resources) do
        if call('HEXISTS', ITEMS, resource) == 1 then mark(resource, 'cooldown', NOW + COOLDOWN, 'cooling down') end
      end
      recount_holds()
    end
    settle(resources)
  end)
  if ok then return end
  for i, resource in ipairs(resources) do
    redis.pcall('ZREM', FREE, resource)
    redis.pcall('ZREM', QUARANTINE, resource)
    call('HSET', HOLDERS, resource, records[i] or '')
    call('ZADD', LEASES, format('%d', NOW - CLOCK_SLACK), resource)
  end
  error(failure, 0)
end
