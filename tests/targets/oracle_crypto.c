/* The hand-written assembly of libcrypto, and zlib.  Linked by file name: no headers are needed. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int SHA256_Init(void *), SHA256_Update(void *, const void *, size_t), SHA256_Final(unsigned char *, void *);
int SHA1_Init(void *), SHA1_Update(void *, const void *, size_t), SHA1_Final(unsigned char *, void *);
int SHA512_Init(void *), SHA512_Update(void *, const void *, size_t), SHA512_Final(unsigned char *, void *);
int AES_set_encrypt_key(const unsigned char *, int, void *);
void AES_cbc_encrypt(const unsigned char *, unsigned char *, size_t, const void *, unsigned char *, int);
int compress2(unsigned char *, unsigned long *, const unsigned char *, unsigned long, int);
int uncompress(unsigned char *, unsigned long *, const unsigned char *, unsigned long);

static unsigned char data[4096], other[8192], back[4096];

int main(void) {
    long long context[64];
    unsigned char digest[64], key[16] = {1, 2, 3}, vector[16] = {4};
    unsigned long packed = sizeof(other), unpacked = sizeof(back);
    for (unsigned i = 0; i < sizeof(data); i++)
        data[i] = (unsigned char)((i * i) >> 7);
    SHA256_Init(context), SHA256_Update(context, data, 1000), SHA256_Final(digest, context);
    SHA1_Init(context), SHA1_Update(context, data, 700), SHA1_Final(digest, context);
    SHA512_Init(context), SHA512_Update(context, data, 700), SHA512_Final(digest, context);
    AES_set_encrypt_key(key, 128, context);
    AES_cbc_encrypt(data, other, 1024, context, vector, 1);
    compress2(other, &packed, data, sizeof(data), 6);
    uncompress(back, &unpacked, other, packed);
    printf("done %d\n", memcmp(data, back, sizeof(data)) == 0);
    fflush(stdout);
    _exit(0);
}
