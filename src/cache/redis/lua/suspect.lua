-- ARGV: gen, member. Its expiry, and the server processes that it may still write through.
if redis.call('HGET', H, 'gen') ~= ARGV[1] then return { 'generation' } end
local expiry = member(ARGV[2])
if not expiry then return { 'unregistered' } end
if expiry >= clock() then return { 'alive' } end
local reply = { 'lapsed', string.format('%.0f', expiry) }
local prefix = 'b:' .. ARGV[2] .. ':'
for _, field in ipairs(fields(prefix)) do reply[#reply + 1] = string.sub(field, #prefix + 1) end
return reply
