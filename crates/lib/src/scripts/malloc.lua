-- Grants resources. One call serves n requests; those with a binding name are served first. Needs grant, settle, reclaim;
-- what grant.lua has served already does not come here.
--
-- ARGV: n times: time to live (ms; 0 = the pool's default, -1 = permanent), binding name ('' = none), holder (JSON).
-- Returns {'ok', n results, incarnation, now}: false (nothing free) | {'ttl', maximum} |
--   {resource, token, time to live (ms; a claim's, if it is to be permanent), item record}.
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
    local count_of_band = call('ZCOUNT', FREE, '-inf', format('(%d', (band + 1) * BAND))
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
    assure()
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

return finish(function()
  for _, i in ipairs(named) do serve_named(i) end
  -- Too little was free for all of these: the first ones may have been served.
  local left = {}
  for k = #named == 0 and #taken + 1 or 1, #plain do left[#left + 1] = plain[k] end
  if #left > 0 then take_next(left) end
  grant()
  local binding_ttl = tonumber(meta[11])
  for k, i in ipairs(taken) do
    if rebind[i] then
      local name = ARGV[3 * i - 1]
      call('HSET', BINDS, name, format('a%013d', binding_ttl) .. resources[k])
      if binding_ttl > 0 then
        call('ZADD', BIND_EXPIRY, format('%d', NOW + binding_ttl), name)
      else
        call('ZREM', BIND_EXPIRY, name)
      end
    end
  end
end)
