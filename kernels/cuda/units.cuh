// Values that are only moved, of whatever dtype: so many bytes at once.

struct alignas(1) Unit1 { unsigned char v; };
struct alignas(2) Unit2 { unsigned short v; };
struct alignas(4) Unit4 { unsigned v; };
struct alignas(8) Unit8 { unsigned long long v; };
struct alignas(16) Unit16 { unsigned long long v[2]; };
