-- What the scripts share. KEYS[1] is the hash that holds all coherence state of one database:
--   gen, born, lease   the generation: a random name, its birth and its lease in ms
--   orphans            there until nothing that was under way when the generation was young, and that nobody answers for, can commit any more
--   v                  the state of the catalog
--   iv                 grows with each change of what the members must act upon: what is of interest, and the catalog
--   cv, i:<oid>        its value when the catalog last changed, and when the relation became one that is looked at
--   a:<id>, ia         up to which value this member acts, and all members do
--   it                 since when all members do not, or since when they last came nearer to it
--   w:<oid>            writes of the relation since it was last looked at
--   members, minexp    ids, each followed by ','; the earliest expiry among them
--   m:<id>             expiry in ms ':' fence
--   b:<id>:<pid>@<start>   a server process that this member writes through
--   e:<oid>            the relation's epoch; absent: neither served nor filled until a lookup makes one
--   p:<fingerprint>    the last purge of that statement's answers, by its token; absent: none
--   d:<oid>            the relation's set of doubts: tokens, each followed by ';'; absent: none
-- Relation 0 is the whole database. A token is <member id>:<counter>.
local H = KEYS[1]

local function clock()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function add_doubt(oid, token)
  local set = redis.call('HGET', H, 'd:' .. oid) or ''
  if not string.find(set, token .. ';', 1, true) then
    redis.call('HSET', H, 'd:' .. oid, set .. token .. ';')
  end
end

local function keep_doubts(oid, set)
  if set == '' then
    redis.call('HDEL', H, 'd:' .. oid)
  else
    redis.call('HSET', H, 'd:' .. oid, set)
  end
end

-- What was read from the relation is never matched again; its next epoch is made when it is asked for.
local function renew(oid)
  redis.call('HDEL', H, 'e:' .. oid)
end

-- Something has changed that the members must act upon. They hear of it now, or with their next heartbeat.
local function news()
  local before = redis.call('HMGET', H, 'iv', 'ia')
  if (before[1] or '0') == (before[2] or '0') then redis.call('HSET', H, 'it', string.format('%.0f', clock())) end
  local number = redis.call('HINCRBY', H, 'iv', 1)
  redis.pcall('PUBLISH', H, number)
  return number
end

-- Nobody has looked at the relation for many writes: they need not be told of any more.
local function written_unseen(oid)
  local known = redis.call('HMGET', H, 'i:' .. oid, 'e:' .. oid)
  if not known[1] then return end
  if known[2] then
    redis.call('HDEL', H, 'w:' .. oid)
  elseif redis.call('HINCRBY', H, 'w:' .. oid, 1) >= WITHDRAWN_AFTER then
    redis.call('HDEL', H, 'i:' .. oid, 'w:' .. oid)
    news()
  end
end

-- Somebody asks for these, though in vain.
local function still_looked_at(from)
  for i = from, #ARGV do redis.call('HDEL', H, 'w:' .. ARGV[i]) end
end

-- Takes the token away. The new epoch comes first, here and elsewhere: a script that fails half way (no memory) must leave
-- too much in doubt, not too little.
local function drop_doubt(oid, token)
  local set = redis.call('HGET', H, 'd:' .. oid)
  if not set then return end
  local first, last = string.find(set, token .. ';', 1, true)
  if not first then return end
  renew(oid)
  keep_doubts(oid, string.sub(set, 1, first - 1) .. string.sub(set, last + 1))
end

local function fields(prefix)
  local found = {}
  for _, field in ipairs(redis.call('HKEYS', H)) do
    if string.sub(field, 1, #prefix) == prefix then found[#found + 1] = field end
  end
  return found
end

-- Takes all of a member's tokens away, but not those in `open` from the database's set.
local function drop_doubts_of(id, open)
  for _, field in ipairs(fields('d:')) do
    local oid = string.sub(field, 3)
    local kept, dropped = '', false
    for token in string.gmatch(redis.call('HGET', H, field), '([^;]+);') do
      local own = string.sub(token, 1, #id + 1) == id .. ':'
      if own and not (oid == '0' and open[token]) then dropped = true else kept = kept .. token .. ';' end
    end
    if dropped then
      renew(oid)
      keep_doubts(oid, kept)
    end
  end
end

-- The catalog has changed: every write that is open may reach relations that its raise did not know of.
local function change_catalog(v)
  for _, field in ipairs(fields('d:')) do
    for token in string.gmatch(redis.call('HGET', H, field), '([^;]+);') do add_doubt('0', token) end
  end
  -- What nobody has looked at since it was last written may be gone.
  for _, field in ipairs(fields('i:')) do
    local oid = string.sub(field, 3)
    if redis.call('HEXISTS', H, 'e:' .. oid) == 0 then redis.call('HDEL', H, field, 'w:' .. oid) end
  end
  renew('0')
  redis.call('HSET', H, 'v', v, 'cv', news())
end

local function member(id)
  local m = redis.call('HGET', H, 'm:' .. id)
  if not m then return nil end
  local expiry, fence = string.match(m, '^(%d+):(%d+)$')
  return tonumber(expiry), tonumber(fence)
end

-- Sets minexp anew; returns the ids that have lapsed.
local function survey(now)
  local earliest, lapsed = nil, {}
  for id in string.gmatch(redis.call('HGET', H, 'members') or '', '([^,]+),') do
    local expiry = member(id) or 0
    if not earliest or expiry < earliest then earliest = expiry end
    if expiry < now then lapsed[#lapsed + 1] = id end
  end
  redis.call('HSET', H, 'minexp', string.format('%.0f', earliest or 0))
  redis.call('PEXPIRE', H, 86400000)
  return lapsed
end

-- Up to which value every member acts.
local function agree()
  local least = nil
  for id in string.gmatch(redis.call('HGET', H, 'members') or '', '([^,]+),') do
    local acts = tonumber(redis.call('HGET', H, 'a:' .. id) or 0)
    if not least or acts < least then least = acts end
  end
  least = string.format('%.0f', least or 0)
  if redis.call('HGET', H, 'ia') ~= least then
    redis.call('HSET', H, 'ia', least, 'it', string.format('%.0f', clock()))
  end
end

local function acts_upon(id, number)
  redis.call('HSET', H, 'a:' .. id, number)
  agree()
end

-- What is of interest now.
local function append_interest(reply)
  for _, field in ipairs(fields('i:')) do reply[#reply + 1] = string.sub(field, 3) end
end

local function forget_backends(id)
  for _, field in ipairs(fields('b:' .. id .. ':')) do redis.call('HDEL', H, field) end
end

local function set_member(id, expiry, fence)
  redis.call('HSET', H, 'm:' .. id, expiry .. ':' .. fence)
  local members = redis.call('HGET', H, 'members') or ''
  if not string.find(members, id .. ',', 1, true) then redis.call('HSET', H, 'members', members .. id .. ',') end
end

local function forget_member(id)
  forget_backends(id)
  local kept = ''
  for other in string.gmatch(redis.call('HGET', H, 'members') or '', '([^,]+),') do
    if other ~= id then kept = kept .. other .. ',' end
  end
  redis.call('HSET', H, 'members', kept)
  redis.call('HDEL', H, 'm:' .. id, 'a:' .. id)
  agree()
end

-- Why a member's command does not count, or nil.
local function turned_away(gen, id, fence)
  if redis.call('HGET', H, 'gen') ~= gen then return 'generation' end
  local _, known = member(id)
  if not known then return 'unregistered' end
  if known ~= tonumber(fence) then return 'fenced' end
  return nil
end

-- Why nothing can be served or stored now, or nil, the epochs in the form that is compared and kept, and, if they are not to be relied on
-- yet, for how many ms that has been so: a member may write without saying so, until it acts upon the news; and which oids nobody has
-- looked at before. The statement's fingerprint stands before the first oid.
local function current(gen, v, from, nonce)
  local now = clock()
  local head = redis.call('HMGET', H, 'gen', 'born', 'lease', 'minexp', 'v', 'p:' .. ARGV[from - 1], 'ia', 'cv', 'orphans')
  if head[1] ~= gen then return 'generation' end
  if now < tonumber(head[2]) + tonumber(head[3]) then return 'young' end
  if head[9] then return 'young' end
  if tonumber(head[4]) < now then return 'lapsed' end
  if head[5] ~= v then return 'catalog', head[5] end
  local packed = head[6] and { 'p=' .. head[6] .. ';' } or {}
  local acted = tonumber(head[7] or 0)
  local is_pending, number, new = acted < tonumber(head[8] or 0), nil, {}
  local chunk = 500
  for first = from, #ARGV, chunk do
    local doubts, epochs, interests = {}, {}, {}
    for i = first, math.min(first + chunk - 1, #ARGV) do
      doubts[#doubts + 1] = 'd:' .. ARGV[i]
      epochs[#epochs + 1] = 'e:' .. ARGV[i]
      if ARGV[i] ~= '0' then interests[#interests + 1] = 'i:' .. ARGV[i] end
    end
    for _, set in ipairs(redis.call('HMGET', H, unpack(doubts))) do
      if set then
        if nonce then still_looked_at(from) end
        return 'doubt'
      end
    end
    local values = redis.call('HMGET', H, unpack(epochs))
    for i = 1, #epochs do
      local epoch = values[i]
      if not epoch and nonce then
        epoch = nonce
        redis.call('HSET', H, epochs[i], epoch)
      end
      packed[#packed + 1] = epochs[i] .. '=' .. (epoch or '') .. ';'
    end
    local since = #interests > 0 and redis.call('HMGET', H, unpack(interests)) or {}
    for i = 1, #interests do
      if not since[i] and nonce then
        number = number or news()
        redis.call('HSET', H, interests[i], number)
        new[#new + 1] = string.sub(interests[i], 3)
      end
      if not since[i] or tonumber(since[i]) > acted then is_pending = true end
    end
  end
  local pending_for = is_pending and math.max(0, now - tonumber(redis.call('HGET', H, 'it') or now)) or nil
  return nil, table.concat(packed), pending_for, table.concat(new, ',')
end
