-- Who waits, in turn. Read-only. Needs only the prelude.
--
-- ARGV: from which place on (0 = the first), how many (at most 200).
-- Returns {'ok', {waiter, what it asked for (JSON, see wait.lua), alive until (ms), 1 if something is offered to it,
-- ...}, how many wait in all, now}.
local refused = unusable(call('HGET', META, 'schema'))
if refused then return refused end
local from, listed = tonumber(ARGV[1]), {}
for _, waiter in ipairs(call('ZRANGE', WAITERS, from, from + tonumber(ARGV[2]) - 1)) do
  listed[#listed + 1] = waiter
  listed[#listed + 1] = call('HGET', WAITING, waiter) or '{}'
  listed[#listed + 1] = call('ZSCORE', ALIVE, waiter) or '0'
  listed[#listed + 1] = call('HEXISTS', WAITING, waiter .. '\0')
end
return { 'ok', listed, call('ZCARD', WAITERS), NOW }
