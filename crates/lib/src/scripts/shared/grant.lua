-- Granting: what a malloc is asked for, how a grant is written down, and the whole of a malloc that needs no more than
-- that (no names, enough is free). It comes before the shared parts: Redis makes a script's functions anew at every
-- call, and this way most calls make none but these. Needs only the prelude; arguments and replies are in malloc.lua.
--
-- A permanent grant begins as a claim of CLAIM ms, to be confirmed by a renewal.
local CLAIM = 10000
local meta = call('HMGET', META, 'last', 'granted', 'longest', 'schema', 'holds', 'order', 'cooldown', 'suspended',
  'default_ttl', 'max_ttl', 'binding_ttl', 'incarnation')
local refused = read_settings(meta[4], meta[5], meta[6], meta[7])
if refused then return refused end

local n = #ARGV / 3
local results, plain, named, ttls = {}, {}, {}, {}
local max_ttl = tonumber(meta[10])
for i = 1, n do
  local ttl = tonumber(ARGV[3 * i - 2])
  if ttl == 0 then ttl = tonumber(meta[9]) end
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

-- Writes down what was taken.
local function grant()
  local count = #taken
  if count == 0 then return end
  local token, longest = math.max((tonumber(meta[1]) or 0) + 1, NOW_US), tonumber(meta[3])
  local records = call('HMGET', ITEMS, unpack(resources))
  local holders, leases = {}, {}
  for k = 1, count do
    local i, resource = taken[k], resources[k]
    local ttl = ttls[i]
    if not records[k] then error('ERR ' .. resource .. ' is free but not declared; run repair', 0) end
    if longest ~= -1 and ttl > longest then longest = ttl end
    holders[2 * k - 1] = resource
    holders[2 * k] = format('%016d%013d', token + k - 1, NOW) .. ARGV[3 * i]
    leases[2 * k - 1] = format('%d', NOW + ttl)
    leases[2 * k] = resource
    results[i] = { resource, token + k - 1, ttl, records[k] }
  end
  call('HSET', META, 'last', format('%d', token + count - 1), 'granted', format('%d', meta[2] + count),
    'longest', format('%d', longest))
  call('HSET', HOLDERS, unpack(holders))
  call('ZADD', LEASES, unpack(leases))
end

-- Runs what grants, and answers. If it fails, everything taken goes back where it was: a key of the wrong type, a
-- command not permitted.
local function finish(granting)
  local ok, failure = pcall(granting)
  if ok then return { 'ok', results, meta[12], NOW } end
  for k, resource in ipairs(resources) do
    redis.pcall('HDEL', HOLDERS, resource)
    redis.pcall('ZREM', LEASES, resource)
    if scores[k] then redis.pcall('ZADD', FREE, scores[k], resource) end
  end
  redis.pcall('HSET', META, 'granted', meta[2])
  return type(failure) == 'table' and failure or redis.error_reply(failure)
end

permit('ZADD') -- to put back what was taken
if #named == 0 and #plain > 0 and ORDER ~= 'Random' then
  local popped = call('ZPOPMIN', FREE, #plain)
  for k = 1, #popped / 2 do
    taken[k], resources[k], scores[k] = plain[k], popped[2 * k - 1], popped[2 * k]
  end
  if #taken == #plain then return finish(grant) end
end
