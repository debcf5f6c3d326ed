-- What is free: in `free` by its turn, and in `by-label` by its labels and turn, where the pool has indexes. Who changes
-- one changes both, here. Needs only the prelude.

-- After a setting changed, or the first came to wait or the last left: whether the pool is `plain`, so that grant.lua and
-- give_back.lua have to read no more than that.
local function restate()
  read_settings()
  local plain = not SHARED and not INDEXES and not SUSPENDED and WAIT_COUNT == 0 and ORDER ~= 'Random'
  call('HSET', META, 'plain', plain and '1' or '0')
end

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

-- Behind all that are free, however many turns there are in a millisecond: shared resources take turns.
local function next_turn()
  local turn = math.max(tonumber(call('HGET', META, 'turn') or 0) + 1, NOW)
  call('HSET', META, 'turn', format('%d', turn))
  return turn
end

-- An entry of `by-label` begins with the index (its label names, with commas between) and the values, each followed by
-- NUL; then come the score in `free` (16 digits), NUL, and the resource. These are the beginnings for one item.
local function label_prefixes(record)
  local prefixes = {}
  local facts = sub(record, 19 + tonumber(sub(record, 15, 18)))
  local labels = INDEXES and facts ~= '' and cjson.decode(facts).labels
  if not labels then return prefixes end
  for _, names in ipairs(INDEXES) do
    local prefix = table.concat(names, ',') .. '\0'
    for _, name in ipairs(names) do
      if not labels[name] then
        prefix = nil
        break
      end
      prefix = prefix .. labels[name] .. '\0'
    end
    prefixes[#prefixes + 1] = prefix
  end
  return prefixes
end

local function label_members(resource, record, score)
  local members = label_prefixes(record)
  for k, prefix in ipairs(members) do members[k] = prefix .. format('%016.0f', score) .. '\0' .. resource end
  return members
end

-- Lists of the same length; a resource whose score is false is not free, one whose record is false is not declared.
local function enter_free(resources, records, scores)
  local free = {}
  for k, resource in ipairs(resources) do
    free[2 * k - 1], free[2 * k] = format('%.0f', scores[k]), resource
    if INDEXES then
      for _, member in ipairs(label_members(resource, records[k], scores[k])) do call('ZADD', BY_LABEL, 0, member) end
    end
  end
  if #free > 0 then call('ZADD', FREE, unpack(free)) end
end

local function leave_labels(resources, records, scores)
  if not INDEXES then return end
  for k, resource in ipairs(resources) do
    if scores[k] and records[k] then
      for _, member in ipairs(label_members(resource, records[k], tonumber(scores[k]))) do
        call('ZREM', BY_LABEL, member)
      end
    end
  end
end

local function leave_free(resources, records, scores)
  call('ZREM', FREE, unpack(resources))
  leave_labels(resources, records, scores)
end

-- The leases on a resource of a shared pool, at most `count`.
local function shares_of(resource, count)
  return call('ZRANGEBYLEX', SHARES, '[' .. resource .. '\0', '(' .. resource .. '\1', 'LIMIT', 0, count)
end

-- How many hold a resource of a shared pool.
local function count_holders(resource)
  return call('ZLEXCOUNT', SHARES, '[' .. resource .. '\0', '(' .. resource .. '\1')
end

-- How many more may hold it.
local function room_of(resource)
  if not SHARED then return 1 end
  if MAX_HOLDERS == 0 then return math.huge end
  return MAX_HOLDERS - count_holders(resource)
end

-- Picks at most `count` free resources at random, of the highest priority first.
local seeded = false
local function pick(count)
  if not seeded then
    -- Redis seeds each script's generator alike: the time, in µs, tells them apart.
    math.randomseed(NOW_US % 2147483647)
    seeded = true
  end
  local picked, passed = {}, 0
  while #picked < 2 * count do
    local first = call('ZRANGE', FREE, passed, passed, 'WITHSCORES')
    if not first[1] then break end
    local band = math.floor(tonumber(first[2]) / BAND)
    local size = call('ZCOUNT', FREE, '-inf', format('(%.0f', (band + 1) * BAND)) - passed
    -- A shuffle of the band's ranks, of which only those are kept that moved.
    local moved = {}
    for k = 0, math.min(size, count - #picked / 2) - 1 do
      local rank = math.random(k, size - 1)
      local chosen = call('ZRANGE', FREE, passed + (moved[rank] or rank), passed + (moved[rank] or rank), 'WITHSCORES')
      moved[rank] = moved[k] or k
      picked[#picked + 1], picked[#picked + 2] = chosen[1], chosen[2]
    end
    passed = passed + size
  end
  return picked
end

-- The first `count` free resources in the pool's order that fit, as {resource, score, ...}. selectors: a list of
-- alternatives, the first one preferred, each a list: name of the index, then beginnings of entries, any of which fits;
-- nil = everything fits. A selector takes the one whose turn it is in a pool of random order, too.
local function find(selectors, count)
  if not selectors then
    if ORDER == 'Random' then return pick(count) end
    return call('ZRANGE', FREE, 0, count - 1, 'WITHSCORES')
  end
  local found, seen = {}, {}
  for _, selector in ipairs(selectors) do
    local candidates = {}
    for k = 2, #selector do
      local prefix = selector[k]
      for _, member in ipairs(call('ZRANGEBYLEX', BY_LABEL, '[' .. prefix, '(' .. prefix .. ':', 'LIMIT', 0, count)) do
        candidates[#candidates + 1] = sub(member, #prefix + 1)
      end
    end
    table.sort(candidates)
    for _, candidate in ipairs(candidates) do
      local resource = sub(candidate, 18)
      if #found >= 2 * count then return found end
      if not seen[resource] then
        seen[resource] = true
        found[#found + 1], found[#found + 2] = resource, sub(candidate, 1, 16)
      end
    end
  end
  return found
end

-- Whether an item is among what selectors ask for.
local function fits(selectors, record)
  if not selectors then return true end
  local has = {}
  for _, prefix in ipairs(label_prefixes(record)) do has[prefix] = true end
  for _, selector in ipairs(selectors) do
    for k = 2, #selector do
      if has[selector[k]] then return true end
    end
  end
  return false
end

-- The same as three lists: resources, their scores, their item records. What is not declared (a broken invariant) is
-- dropped on the way.
local function look(selectors, count)
  local found = find(selectors, count)
  local resources, scores, records = {}, {}, {}
  if #found == 0 then return resources, scores, records end
  local named = {}
  for k = 1, #found, 2 do named[#named + 1] = found[k] end
  -- Whether it is free is said by `free` alone.
  local free = selectors and call('ZMSCORE', FREE, unpack(named))
  for k, record in ipairs(call('HMGET', ITEMS, unpack(named))) do
    if free and not free[k] then
      -- A label that was left behind; `check` finds it.
    elseif record then
      resources[#resources + 1], scores[#scores + 1], records[#records + 1] = named[k], tonumber(found[2 * k]), record
    else
      call('ZREM', FREE, named[k])
    end
  end
  return resources, scores, records
end

-- How many leases at once the pool could have, counted up to `enough`.
local function most_at_once(enough)
  local items = call('HLEN', ITEMS)
  if not SHARED then return items end
  if MAX_HOLDERS == 0 then return items > 0 and enough or 0 end
  return items * MAX_HOLDERS
end

-- How many grants these resources have room for, counted up to `most`.
local function count_room(resources, most)
  if not SHARED then return #resources end
  local room = 0
  for _, resource in ipairs(resources) do room = room + room_of(resource) end
  return math.min(room, most)
end

-- Writes down that a resource is held: until `expiry` (ms, or '+inf') by whom `holder` (JSON) says. granted: 13 digits.
-- The resource must have been taken from where it was. Returns the id and the token.
local function hold(resource, granted, holder, expiry)
  local token = math.max(LAST + 1, NOW_US)
  local digits = format('%016.0f', token)
  local id = SHARED and resource .. '\0' .. digits or resource
  LAST, GRANTED = token, GRANTED + 1
  call('HSET', META, 'last', format('%.0f', token), 'granted', GRANTED)
  call('HSET', HOLDERS, id, digits .. granted .. holder)
  call('ZADD', LEASES, expiry, id)
  if SHARED then call('ZADD', SHARES, 0, id) end
  return id, token
end
