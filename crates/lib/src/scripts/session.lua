-- The leases of one session, a page of them in the order of their ids. Read-only. Needs only the prelude.
--
-- ARGV: session, the id that the page before ended with ('' = from the beginning).
-- Returns {'ok', {id, token (16 digits), ...}}; a page has 200 leases, the last one fewer.
local refused = unusable(call('HGET', META, 'schema'))
if refused then return refused end
local PAGE = 200
local prefix = ARGV[1] .. '\0'
local from = (ARGV[2] == '' and '[' or '(') .. prefix .. ARGV[2]
local ids, listed = {}, {}
for i, entry in ipairs(call('ZRANGEBYLEX', SESSION_LEASES, from, '(' .. ARGV[1] .. '\1', 'LIMIT', 0, PAGE)) do
  ids[i] = sub(entry, #prefix + 1)
end
for i, record in ipairs(#ids > 0 and call('HMGET', HOLDERS, unpack(ids)) or {}) do
  listed[2 * i - 1], listed[2 * i] = ids[i], sub(record or '', 1, 16)
end
return { 'ok', listed }
