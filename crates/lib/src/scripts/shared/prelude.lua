-- Prelude of every pool script: its keys, Redis' time, and the record formats. Read-only; everything here is O(1).
--
-- KEYS, the same for every script (shapes in keys.rs):
--   1 meta, 2 items, 3 free, 4 leases, 5 holders, 6 quarantine, 7 marks, 8 reserved, 9 binds, 10 bind-expiry, 11 origins
-- Every reply is an array whose first element is a status; a pool that is missing or too new answers before anything
-- is written: {'unknown'} or {'schema', version}.
local META, ITEMS, FREE, LEASES, HOLDERS = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local QUARANTINE, MARKS, RESERVED, BINDS, BIND_EXPIRY, ORIGINS = KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10], KEYS[11]
local call, sub, format = redis.call, string.sub, string.format

-- TIME moves within a script on Redis 7.0: it is read once, here.
local clock = redis.call('TIME')
local NOW_US = clock[1] * 1000000 + clock[2]
local NOW = math.floor(NOW_US / 1000)

local SCHEMA = '1'
-- A lease is reclaimed this much (ms) after its expiry, so that a clock that jumped ahead grants nobody early.
local CLOCK_SLACK = 2000
-- One priority's share of the scores in `free`: 2^42 ms reach to the year 2109, 1001 of them fit a double exactly.
local BAND = 4398046511104

-- The answer for a pool of this schema field that can't be worked on, or nil.
local function unusable(schema)
  if schema == SCHEMA then return nil end
  if not schema then return { 'unknown' } end
  return { 'schema', schema }
end

-- Settings of the pool: whether there are marks or reservations at all, its order, its cooldown in ms.
local HOLDS, ORDER, COOLDOWN

-- From the fields 'schema', 'holds', 'order', 'cooldown' of meta, in this order.
local function read_settings(schema, holds, order, cooldown)
  HOLDS, ORDER, COOLDOWN = (holds or '0') ~= '0', order, tonumber(cooldown or 0)
  return unusable(schema)
end

-- Refuses while nothing is written what the user may not do, where it could not be undone later.
local function permit(command)
  if redis.acl_check_cmd(command, META, '0', '0') then return end
  error(redis.error_reply('NOPERM this user may not run ' .. command .. ' on the pool, which this call needs'), 0)
end

-- Proves before the first write of a longer sequence that none of it can fail half-way: every key is of its type, every
-- command permitted. About 10 us: for all but the plain grant, renewal and return, which undo what they did.
local assured = false
local function assure()
  if assured then return end
  for _, command in ipairs({ 'HGET', 'HEXISTS', 'HSET', 'HDEL', 'HINCRBY', 'ZSCORE', 'ZMSCORE', 'ZADD', 'ZREM' }) do
    permit(command)
  end
  for _, key in ipairs({ ITEMS, HOLDERS, MARKS, RESERVED, BINDS, ORIGINS }) do call('HLEN', key) end
  for _, key in ipairs({ FREE, LEASES, QUARANTINE, BIND_EXPIRY }) do call('ZCARD', key) end
  assured = true
end
