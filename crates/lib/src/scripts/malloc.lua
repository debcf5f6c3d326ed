-- Grants resources. One call serves n requests; those with a binding name are served first. Needs settle, reclaim.
--
-- ARGV: n times: time to live (ms; 0 = the pool's default, -1 = permanent), binding name ('' = none), holder (JSON).
-- Returns {'ok', n results, incarnation, now}: false (nothing free) | {'ttl', maximum} |
--   {resource, token, time to live (ms; 0 = permanent), item record}.
-- A permanent grant begins as a claim of CLAIM ms, to be confirmed by a renewal.
local CLAIM = 10000
local meta = call('HMGET', META, 'last', 'granted', 'longest', 'schema', 'holds', 'order', 'cooldown', 'suspended',
  'default_ttl', 'max_ttl', 'binding_ttl', 'incarnation')
local refused = read_settings(meta[4], meta[5], meta[6], meta[7])
if refused then return refused end

local n = #ARGV / 3
local results, plain, named = {}, {}, {}
local default_ttl, max_ttl = tonumber(meta[9]), tonumber(meta[10])
local ttls = {}
for i = 1, n do
  local ttl = tonumber(ARGV[3 * i - 2])
  if ttl == 0 then ttl = default_ttl end
  results[i] = false
  if max_ttl > 0 and (ttl == -1 or ttl > max_ttl) then
    results[i] = { 'ttl', max_ttl }
  elseif meta[8] ~= '1' then
    ttls[i] = ttl == -1 and CLAIM or ttl
    if ARGV[3 * i - 1] == '' then plain[#plain + 1] = i else named[#named + 1] = i end
  end
end

-- What was taken, in step: the request, the resource, and the score it had in `free` (false: it was reserved).
local taken, resources, scores = {}, {}, {}

local function take(i, resource, score)
  local k = #taken + 1
  taken[k], resources[k], scores[k] = i, resource, score
end

-- The next `count` resources in the pool's order, within the highest priority first: {resource, score, ...}.
local function pop(count)
  if ORDER ~= 'Random' then return call('ZPOPMIN', FREE, count) end
  local popped = {}
  for k = 1, count do
    local first = call('ZRANGE', FREE, 0, 0, 'WITHSCORES')
    if not first[1] then break end
    -- Redis seeds each script's generator alike: the time, in µs, tells them apart.
    if k == 1 then math.randomseed(NOW_US % 2147483647) end
    local band = math.floor(tonumber(first[2]) / BAND)
    local count_of_band = call('ZCOUNT', FREE, '-inf', format('(%.0f', (band + 1) * BAND))
    local rank = math.random(0, count_of_band - 1)
    local chosen = call('ZRANGE', FREE, rank, rank, 'WITHSCORES')
    call('ZREM', FREE, chosen[1])
    popped[2 * k - 1], popped[2 * k] = chosen[1], chosen[2]
  end
  return popped
end

-- Gives the next resources to these requests; when there are too few, what is over is reclaimed first.
local function take_next(requests)
  local popped = pop(#requests)
  if #popped < 2 * #requests then
    local missing = #requests - #popped / 2
    for k = 1, #popped, 2 do take(requests[(k + 1) / 2], popped[k], popped[k + 1]) end
    local ended, due, unbound = reclaim(math.max(16, missing))
    local from = #requests - missing
    if #ended + #due + #unbound > 0 then
      popped = pop(missing)
      for k = 1, #popped, 2 do take(requests[from + (k + 1) / 2], popped[k], popped[k + 1]) end
    end
    return
  end
  for k = 1, #popped, 2 do take(requests[(k + 1) / 2], popped[k], popped[k + 1]) end
end

-- Takes the resource for a request if it can be granted now to this name; what is over on it is reclaimed on the way.
-- Second result: the holder record of the live lease in the way, if one is.
local function take_bound(i, name, resource)
  local expiry = call('ZSCORE', LEASES, resource)
  if expiry then
    local record = call('HGET', HOLDERS, resource)
    if tonumber(expiry) > NOW - CLOCK_SLACK then return false, record end
    release({ resource }, { record })
    call('HINCRBY', META, 'expired', 1)
  end
  local over = call('ZSCORE', QUARANTINE, resource)
  if over then
    if tonumber(over) > NOW then return false end
    resettle({ resource })
  end
  local score = call('ZSCORE', FREE, resource)
  if score then
    call('ZREM', FREE, resource)
    take(i, resource, score)
    return true
  end
  if call('HGET', RESERVED, resource) == name and call('HEXISTS', ITEMS, resource) == 1
    and not call('ZSCORE', QUARANTINE, resource) then
    take(i, resource, false)
    return true
  end
  return false
end

local rebind = {}
local function serve_named(i)
  local name = ARGV[3 * i - 1]
  local record = call('HGET', BINDS, name)
  if record then
    local over = call('ZSCORE', BIND_EXPIRY, name)
    if over and tonumber(over) <= NOW then
      local reserved = end_binding(name, record, true)
      if reserved then resettle({ reserved }) end
      record = call('HGET', BINDS, name)
    end
  end
  local kind = record and sub(record, 1, 1)
  local live = kind and kind ~= 'D' and kind ~= 'R'
  -- Another request of this call may have it already.
  local resource = live and sub(record, 15)
  local granted, in_the_way = false, nil
  if live then
    for _, other in ipairs(resources) do
      if other == resource then in_the_way = false end
    end
    if in_the_way == nil then granted, in_the_way = take_bound(i, name, resource) end
  end
  if granted then
    if kind == 'a' then rebind[i] = true end
    return
  end
  if live and required(kind) then return end
  take_next({ i })
  -- A worker that was killed and came back under its name keeps its binding; a declared one is never moved.
  local same = in_the_way and cjson.decode(sub(in_the_way, 30)).bind == name
  if not kind or (kind == 'a' and not same) then rebind[i] = true end
end

local token = math.max((tonumber(meta[1]) or 0) + 1, NOW_US)
local function grant()
  for _, i in ipairs(named) do serve_named(i) end
  if #plain > 0 then take_next(plain) end
  if #taken == 0 then return end
  local records = call('HMGET', ITEMS, unpack(resources))
  local holders, leases, longest = {}, {}, tonumber(meta[3])
  for k, i in ipairs(taken) do
    local resource, ttl = resources[k], ttls[i]
    if not records[k] then error('ERR ' .. resource .. ' is free but not declared; run repair', 0) end
    if longest ~= -1 and ttl > longest then longest = ttl end
    holders[2 * k - 1] = resource
    holders[2 * k] = format('%016.0f%013.0f', token + k - 1, NOW) .. ARGV[3 * i]
    leases[2 * k - 1] = format('%.0f', NOW + ttl)
    leases[2 * k] = resource
    results[i] = { resource, token + k - 1, ttl, records[k] }
  end
  call('HSET', META, 'last', format('%.0f', token + #taken - 1), 'granted', format('%.0f', meta[2] + #taken),
    'longest', format('%.0f', longest))
  call('HSET', HOLDERS, unpack(holders))
  call('ZADD', LEASES, unpack(leases))
  local binding_ttl = tonumber(meta[11])
  for k, i in ipairs(taken) do
    if rebind[i] then
      local name = ARGV[3 * i - 1]
      call('HSET', BINDS, name, format('a%013.0f', binding_ttl) .. resources[k])
      if binding_ttl > 0 then call('ZADD', BIND_EXPIRY, format('%.0f', NOW + binding_ttl), name) end
    end
  end
end

local ok, failure = pcall(grant)
if not ok then
  -- A key of the wrong type, a command not permitted: everything taken goes back where it was.
  for k, resource in ipairs(resources) do
    redis.pcall('HDEL', HOLDERS, resource)
    redis.pcall('ZREM', LEASES, resource)
    if scores[k] then redis.pcall('ZADD', FREE, scores[k], resource) end
  end
  return type(failure) == 'table' and failure or redis.error_reply(failure)
end
return { 'ok', results, meta[12], NOW }
