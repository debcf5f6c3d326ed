-- The whole of a poll by who waits for any one resource while there is none and nothing is over: most of what those in a long
-- line ask. It comes before the shared parts, as grant.lua does. Needs only the prelude; arguments and replies are in wait.lua.
local meta = call('HMGET', META, 'schema', 'default_ttl', 'max_ttl', 'incarnation', 'mode')

local function is_granted_as_asked()
  local ttl, max_ttl = tonumber(ARGV[6]), tonumber(meta[3])
  if ttl == 0 then ttl = tonumber(meta[2]) end
  return max_ttl == 0 or ttl ~= -1 and ttl <= max_ttl
end

-- Whether an entry of a sorted set has come due.
local function is_due(key, from, by)
  return #call('ZRANGEBYSCORE', key, from, format('%d', by), 'LIMIT', 0, 1) > 0
end

if ARGV[1] == 'wait' and ARGV[7] == '' and ARGV[9] == '' and meta[1] == SCHEMA and is_granted_as_asked() then
  local waiters, alive, waiting = KEYS[15], KEYS[18], KEYS[17]
  local waiter = ARGV[2]
  local place = call('ZRANK', waiters, waiter)
  local request = place and call('HMGET', waiting, waiter, waiter .. '\0')
  if request and request[1] and not request[2]
    and call('ZCARD', FREE) == 0
    and not is_due(LEASES, '-inf', NOW - CLOCK_SLACK)
    and not is_due(KEYS[6], '-inf', NOW) -- quarantine
    and not is_due(KEYS[10], '-inf', NOW) -- bind-expiry
    and not is_due(KEYS[19], '(0', NOW - CLOCK_SLACK) -- sessions
  then
    -- It may itself have been thought dead.
    call('ZADD', alive, format('%d', NOW + tonumber(ARGV[5])), waiter)
    if not is_due(alive, '-inf', NOW) then
      return { 'ok', false, meta[4], NOW, meta[5] == 'Shared' and 1 or 0, place }
    end
  end
end
