-- The whole of a malloc that asks for nothing special in a pool where nothing is (`plain`, see free_set.lua), as far as
-- enough is free. It comes before the shared parts: Redis makes a script's functions anew at every call, and this way most
-- calls make none of these. Needs only the prelude; arguments and replies are in malloc.lua.
local n = #ARGV / 4
-- done: requests that have their result already.
local results, done = {}, {}
local meta = call('HMGET', META, 'plain', 'schema', 'last', 'granted', 'longest', 'default_ttl', 'max_ttl', 'incarnation')
local is_plain = meta[1] == '1' and meta[2] == SCHEMA
for i = 1, n do
  results[i] = false
  if ARGV[4 * i - 2] ~= '' or ARGV[4 * i] ~= '' then is_plain = false end
end

if is_plain then
  local max_ttl = tonumber(meta[7])
  local requests, ttls = {}, {}
  for i = 1, n do
    local ttl = tonumber(ARGV[4 * i - 3])
    if ttl == 0 then ttl = tonumber(meta[6]) end
    if max_ttl > 0 and (ttl == -1 or ttl > max_ttl) then
      results[i], done[i] = { false, 'ttl', max_ttl }, true
    else
      requests[#requests + 1], ttls[#ttls + 1] = i, ttl == -1 and CLAIM or ttl
    end
  end
  if #requests == 0 then return { 'ok', results, meta[8], NOW, 0 } end
  permit('ZADD') -- to put back what was taken
  local popped = call('ZPOPMIN', FREE, #requests)
  local count = #popped / 2
  if count > 0 then
    local resources = {}
    for k = 1, count do resources[k] = popped[2 * k - 1] end
    local ok, failure = pcall(function()
      local token, longest = math.max(tonumber(meta[3]) + 1, NOW_US), tonumber(meta[5])
      local records = call('HMGET', ITEMS, unpack(resources))
      local holders, leases = {}, {}
      for k = 1, count do
        local i, resource, ttl = requests[k], resources[k], ttls[k]
        if not records[k] then error('ERR ' .. resource .. ' is free but not declared; run repair', 0) end
        if longest ~= -1 and ttl > longest then longest = ttl end
        holders[2 * k - 1] = resource
        holders[2 * k] = format('%016d%013d', token + k - 1, NOW) .. ARGV[4 * i - 1]
        leases[2 * k - 1] = format('%d', NOW + ttl)
        leases[2 * k] = resource
        results[i], done[i] = { resource, token + k - 1, ttl, records[k] }, true
      end
      call('HSET', META, 'last', format('%d', token + count - 1), 'granted', format('%d', meta[4] + count),
        'longest', format('%d', longest))
      call('HSET', HOLDERS, unpack(holders))
      call('ZADD', LEASES, unpack(leases))
    end)
    if not ok then
      -- Everything goes back where it was: a key of the wrong type, a command not permitted.
      for k, resource in ipairs(resources) do
        redis.pcall('HDEL', HOLDERS, resource)
        redis.pcall('ZREM', LEASES, resource)
        redis.pcall('ZADD', FREE, popped[2 * k], resource)
      end
      redis.pcall('HSET', META, 'granted', meta[4])
      error(failure, 0)
    end
  end
  if count == #requests then return { 'ok', results, meta[8], NOW, 0 } end
end
