-- Sessions, a page of them. Read-only. Needs only the prelude.
--
-- ARGV: cursor. Returns {'ok', next cursor, {session, until (ms), number of leases, ...}, now}; of one that is over and
-- whose leases have ended, the negative of its time.
local refused = unusable(call('HGET', META, 'schema'))
if refused then return refused end
local page, listed = call('ZSCAN', SESSIONS, ARGV[1], 'COUNT', 100), {}
for i = 1, #page[2], 2 do
  local session = page[2][i]
  listed[#listed + 1] = session
  listed[#listed + 1] = format('%.0f', page[2][i + 1])
  listed[#listed + 1] = call('ZLEXCOUNT', SESSION_LEASES, '[' .. session .. '\0', '(' .. session .. '\1')
end
return { 'ok', page[1], listed, NOW }
