-- The whole of giving back where nothing but `free` is concerned (a `plain` pool without cooldown, marks and reservations, no
-- session). It comes before the shared parts as grant.lua does. Needs undo; arguments and replies are in free.lua.
local meta = call('HMGET', META, 'plain', 'schema', 'order', 'holds', 'cooldown')
local named = {}
for i = 1, #ARGV / 2 do named[i] = ARGV[2 * i - 1] end
local results, ids, records, seen = {}, {}, {}, {}
if not meta[2] then return { 'unknown' } end
local is_plain = meta[1] == '1' and meta[2] == SCHEMA and meta[4] == '0' and meta[5] == '0'
if meta[2] == SCHEMA then
  for i, record in ipairs(call('HMGET', HOLDERS, unpack(named))) do
    local id = named[i]
    results[i] = 0
    if record and sub(record, 1, 16) == ARGV[2 * i] and not seen[id] then
      seen[id] = true
      results[i] = 1
      ids[#ids + 1], records[#records + 1] = id, record
      if string.find(record, '"session":"', 30, true) then is_plain = false end
    end
  end
  if #ids == 0 then return { 'ok', results } end
end
if is_plain then
  permit('ZADD') -- to put back what was ended
  call('HDEL', HOLDERS, unpack(ids))
  local ok, failure = pcall(function()
    call('ZREM', LEASES, unpack(ids))
    local free = {}
    for i, record in ipairs(call('HMGET', ITEMS, unpack(ids))) do
      if record then
        local turn = meta[3] == 'Sequential' and tonumber(sub(record, 5, 14)) or NOW
        free[#free + 1] = format('%d', (1000 - tonumber(sub(record, 1, 4))) * BAND + turn)
        free[#free + 1] = ids[i]
      end
    end
    if #free > 0 then call('ZADD', FREE, unpack(free)) end
  end)
  if ok then return { 'ok', results } end
  put_back(ids, records, failure)
end
