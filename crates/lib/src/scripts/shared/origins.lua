-- What is declared, by origin. An entry of `origins` is JSON: {ticket, digest, count, peak, peak_at}.

local function read_origin(origin)
  local json = call('HGET', ORIGINS, origin)
  return json and cjson.decode(json) or nil
end

local function write_origin(origin, entry)
  call('HSET', ORIGINS, origin, cjson.encode(entry))
end

-- An origin's items are not any more as its digest says, or as a synchronisation under way will say when it is done: that
-- one is superseded, and the next one looks again.
local function forget_digest(origin)
  local entry = read_origin(origin)
  if entry then
    entry.digest, entry.ticket = nil, nil
    write_origin(origin, entry)
  end
end

-- Whether a synchronisation with this ticket has been overtaken by a newer one. '' = no synchronisation, never.
local function superseded(origin, ticket)
  if ticket == '' then return false end
  local entry = read_origin(origin)
  return not entry or entry.ticket ~= ticket
end

-- Where two origins declare one item, the facts are those of the lowest rank.
local function rank(origin)
  if origin == 'spec' then return 1 end
  if sub(origin, 1, 6) == 'range/' then return 2 end
  if sub(origin, 1, 7) == 'source/' then return 3 end
  return 4
end

-- Of two of one rank, those of the first by name, byte by byte: how Lua compares texts depends on the server's locale.
local function precedes(one, other)
  if rank(one) ~= rank(other) then return rank(one) < rank(other) end
  for i = 1, math.min(#one, #other) do
    local a, b = string.byte(one, i), string.byte(other, i)
    if a ~= b then return a < b end
  end
  return #one < #other
end

local function record_origins(record)
  return cjson.decode(sub(record, 19, 18 + tonumber(sub(record, 15, 18))))
end

local function with_origins(record, origins)
  local json = cjson.encode(origins)
  return sub(record, 1, 14) .. format('%04d', #json) .. json .. sub(record, 19 + tonumber(sub(record, 15, 18)))
end
