-- One page of one of the pool's keys. Read-only. Needs only the prelude.
--
-- ARGV: number of the key in KEYS, 'HSCAN' or 'ZSCAN', cursor, count. Returns {'ok', next cursor, {field, value, ...}}.
local refused = unusable(call('HGET', META, 'schema'))
if refused then return refused end
local page = call(ARGV[2], KEYS[tonumber(ARGV[1])], ARGV[3], 'COUNT', ARGV[4])
return { 'ok', page[1], page[2] }
