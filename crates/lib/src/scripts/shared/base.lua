-- What all scripts but the plainest calls need: the other keys, the settings, and the proof that nothing fails half-way.
-- Needs only the prelude.
local QUARANTINE, MARKS, RESERVED, BINDS, BIND_EXPIRY, ORIGINS = KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10], KEYS[11]
local BY_LABEL, MISSING, SHARES = KEYS[12], KEYS[13], KEYS[14]
local WAITERS, WANTS, WAITING, ALIVE = KEYS[15], KEYS[16], KEYS[17], KEYS[18]
local SESSIONS, SESSION_LEASES = KEYS[19], KEYS[20]

-- The answer for a pool of this schema field that can't be worked on, or nil.
local function unusable(schema)
  if schema == SCHEMA then return nil end
  if not schema then return { 'unknown' } end
  return { 'schema', schema }
end

-- What most scripts read of meta: the last token and how many grants there were; whether there are marks or
-- reservations at all; how many wait; the settings. INDEXES: lists of label names, or nil when there are none.
local LAST, GRANTED, HOLDS, WAIT_COUNT, ORDER, COOLDOWN, SHARED, MAX_HOLDERS, INDEXES, SUSPENDED

-- Reads them, and the fields named, which come from SETTINGS + 1 on. Second result: the answer for a pool that can't be
-- worked on.
local SETTINGS = 11
local function read_settings(...)
  local meta = call('HMGET', META, 'last', 'granted', 'schema', 'holds', 'waiters', 'order', 'cooldown', 'suspended',
    'mode', 'max_holders', 'indexes', ...)
  LAST, GRANTED = tonumber(meta[1] or 0), tonumber(meta[2] or 0)
  HOLDS, WAIT_COUNT = (meta[4] or '0') ~= '0', tonumber(meta[5] or 0)
  ORDER, COOLDOWN, SUSPENDED = meta[6], tonumber(meta[7] or 0), meta[8] == '1'
  SHARED, MAX_HOLDERS = meta[9] == 'Shared', tonumber(meta[10] or 0)
  INDEXES = meta[11] and meta[11] ~= '' and cjson.decode(meta[11]) or nil
  return meta, unusable(meta[3])
end

-- A lease's id is its resource, in a shared pool resource \0 token (16 digits): the field in `holders`, the member of
-- `leases`.
local function resource_of(id)
  if SHARED then return sub(id, 1, -18) end
  return id
end

-- Proves before the first write of a longer sequence that none of it can fail half-way: every key is of its type, every
-- command permitted. About 10 us: for all but the plain grant, renewal and return, which undo what they did.
-- to_wait: someone is about to wait who may be the first.
local assured = false
local function assure(to_wait)
  if assured then return end
  for _, command in ipairs({ 'HGET', 'HEXISTS', 'HSET', 'HDEL', 'HINCRBY', 'ZSCORE', 'ZMSCORE', 'ZADD', 'ZREM' }) do
    permit(command)
  end
  for _, key in ipairs({ ITEMS, HOLDERS, MARKS, RESERVED, BINDS, ORIGINS }) do call('HLEN', key) end
  for _, key in ipairs({ FREE, LEASES, QUARANTINE, BIND_EXPIRY, MISSING, SESSIONS, SESSION_LEASES }) do
    call('ZCARD', key)
  end
  if INDEXES then call('ZCARD', BY_LABEL) end
  if SHARED then call('ZCARD', SHARES) end
  local waits = to_wait or WAIT_COUNT > 0
  if INDEXES or SHARED or waits then
    permit('ZLEXCOUNT')
    permit('ZRANGEBYLEX')
    permit('ZRANGE')
  end
  if waits then
    call('HLEN', WAITING)
    for _, key in ipairs({ WAITERS, WANTS, ALIVE }) do call('ZCARD', key) end
  end
  assured = true
end
