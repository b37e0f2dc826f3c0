-- A token that stands nowhere makes it a purge. ARGV: any number of: token, the catalog's new state ('' where it has not changed), how many
-- names, names: oids, or 'p' and a fingerprint whose answers are to be forgotten.
if redis.call('HEXISTS', H, 'gen') == 0 then return { 'generation' } end
local at = 1
while at <= #ARGV do
  local token, v, count = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2])
  for i = at + 3, at + 2 + count do
    if string.sub(ARGV[i], 1, 1) == 'p' then
      -- Tokens are never used twice: nothing that was read before matches again.
      redis.call('HSET', H, 'p:' .. string.sub(ARGV[i], 2), token)
    else
      renew(ARGV[i])
      drop_doubt(ARGV[i], token)
    end
  end
  if v ~= '' then change_catalog(v) end
  drop_doubt('0', token)
  at = at + 3 + count
end
return { 'ok', redis.call('HGET', H, 'v') }
